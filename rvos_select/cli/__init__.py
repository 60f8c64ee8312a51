"""`rvos-select`: a file per group of commands. Heavy imports happen in the command."""

from rvos_select.cli.commands import cli, main

__all__ = ["cli", "main"]
