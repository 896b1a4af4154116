"""`python -m edge` is `glm4-edge`."""

from edge.cli import main

main()
