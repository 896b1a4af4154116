"""Where a person meets the model."""
