"""A file of requests → a file of answers in the same order. Knows no model."""
