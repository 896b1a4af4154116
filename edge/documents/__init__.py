"""Files → their text → the prompt that asks about them, whole or as much of them as fits. Knows no model."""
