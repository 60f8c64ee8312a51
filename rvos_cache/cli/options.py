"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
DATASET = click.option("--dataset", required=True, help="mevis, or your own package.module:Class.")
ROOT = click.option("--root", type=PATH, required=True, help="Folder of the dataset.")
SPLIT = click.option("--split", required=True)
TRACKER = click.option("--tracker", default="flow", show_default=True)
SET = click.option("--set", "overrides", multiple=True, metavar="K=V", help="One setting; may repeat.")
CORRUPT = click.option("--corrupt", metavar="NAME:1-5", help="What is done to frames first, as gaussian_noise:5 (ImageNet-C).")
OUT = click.option("--out", type=PATH, required=True, help="The cache to write (.zarr): a path, or s3://bucket/name.zarr.")
JOBS = click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine.")


def ENGINE(command: F) -> F:
    """--engine and the options of each, as keywords of `rvos_cache.extract.engine_of`."""
    for option in (
        click.option("--ray-cores", type=click.IntRange(1), metavar="N", help="A Ray worker per N cores.  [default: per GPU]"),
        click.option("--ray-address", metavar="ADDRESS", help="The Ray cluster.  [default: RAY_ADDRESS, or this machine's]"),
        click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Who does it."),
    ):
        command = option(command)
    return command
