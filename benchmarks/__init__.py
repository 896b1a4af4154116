"""What the numbers in the README come from. Uses `edge`; nothing in `edge` uses this."""
