"""`python -m citylab`."""

from citylab.cli import main

main()
