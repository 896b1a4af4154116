"""One file for each thing a user asks for: parse, call, print. `edge.cli` gathers them."""
