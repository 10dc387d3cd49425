"""`python -m unmask`."""

from unmask.cli.main import entry

entry()
