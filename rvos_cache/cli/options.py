"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from rvos_cache.datasets import DATASETS
from rvos_cache.text import TEXT_ENCODERS
from rvos_cache.trackers import TRACKERS

F = TypeVar("F", bound=Callable[..., Any])


def to_bytes(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """A size like 200GB (10^9), 1.5TiB (2^40) or 5000 in bytes. A usage error for what is no size."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return None if value is None else int(TypeAdapter(ByteSize).validate_python(value))
    except ValidationError:
        raise click.BadParameter(f"{value!r} is no size; give one like 200GB or 1.5TB") from None


PATH = click.Path(path_type=Path)
DATASET = click.option("--dataset", required=True, help=f"{', '.join(DATASETS)}, or your own package.module:Class.")
ROOT = click.option("--root", type=PATH, required=True, help="Folder of the dataset.")
SPLIT = click.option("--split", required=True)
TRACKER = click.option("--tracker", default="flow", show_default=True, help=f"{', '.join(TRACKERS)}, or your own.")
ENCODER = click.option("--encoder", default="hashed", show_default=True, help=f"{', '.join(TEXT_ENCODERS)}, or your own.")
SET = click.option("--set", "overrides", multiple=True, metavar="K=V", help="One setting; may repeat.")
CORRUPT = click.option("--corrupt", metavar="NAME:1-5", help="What is done to frames first, as gaussian_noise:5 (ImageNet-C).")
BUDGET = click.option(
    "--budget", callback=to_bytes, metavar="SIZE", help="Refuse to begin what will take more on disk, as 200GB."
)
OUT = click.option("--out", type=PATH, required=True, help="The cache to write (.zarr): a path, or s3://bucket/name.zarr.")
JOBS = click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine.")


def ENGINE(command: F) -> F:
    """--engine and the options of each, as keywords of `rvos_cache.extraction.engine_of`."""
    for option in (
        click.option("--ray-cores", type=click.IntRange(1), metavar="N", help="A Ray worker per N cores.  [default: per GPU]"),
        click.option("--ray-address", metavar="ADDRESS", help="The Ray cluster.  [default: RAY_ADDRESS, or this machine's]"),
        click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Who does it."),
    ):
        command = option(command)
    return command
