"""`rvos-cache`: one file per group of commands, each with its COMMANDS. Heavy imports happen inside the commands."""

from __future__ import annotations

import click

from rvos_cache import __version__
from rvos_cache.cli import beit3, clip, dvis, exchange, extract, inspect_caches, make_data, plugins, referdino, sam2, vita
from rvos_cache.cli.inspect_caches import info
from rvos_cache.cli.run import Resumable, run_command

__all__ = ["Resumable", "cli", "info", "main", "run_command"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, message="%(prog)s %(version)s", prog_name="rvos-cache")
def cli() -> None:
    """Run frozen trackers and text encoders over a dataset once, and store their outputs in caches for rvos-select."""


for group in (make_data, extract, exchange, vita, dvis, referdino, sam2, clip, beit3, inspect_caches, plugins):
    for command in group.COMMANDS:
        cli.add_command(command)


def main() -> None:
    """The `rvos-cache` program."""
    run_command(cli)
