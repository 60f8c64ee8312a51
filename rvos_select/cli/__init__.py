"""`rvos-select`: a file per group of commands, each with its COMMANDS. Heavy imports happen in the command."""

from __future__ import annotations

import click

from rvos_cache.cli import run_command
from rvos_select.cli import plugins, score, select, show, train

__all__ = ["cli", "main"]

GROUPS = (train, select, score, show, plugins)
"""The files of commands, in the order of the help. To add commands, write a file with COMMANDS and name it here."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="rvos", prog_name="rvos-select", message="%(prog)s %(version)s")
def cli() -> None:
    """Train light selection modules from caches, select tracks, merge their masks, and score and show the results."""


for group in GROUPS:
    for command in group.COMMANDS:
        cli.add_command(command)


def main() -> None:
    """The `rvos-select` program."""
    run_command(cli)
