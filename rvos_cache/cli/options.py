"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from rvos_cache.datasets import DATASETS
from rvos_cache.errors import InputError
from rvos_cache.system.device import check_name, on_device
from rvos_cache.text import TEXT_ENCODERS
from rvos_cache.trackers import TRACKERS

F = TypeVar("F", bound=Callable[..., Any])


def to_bytes(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """A size like 200GB (10^9), 1.5TiB (2^40) or 5000 in bytes. Raises a usage error for any other text."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return None if value is None else int(TypeAdapter(ByteSize).validate_python(value))
    except ValidationError:
        raise click.BadParameter(f"{value!r} is no size; give one like 200GB or 1.5TB") from None


PATH = click.Path(path_type=Path)
DATASET = click.option("--dataset", required=True, help=f"{', '.join(DATASETS)}, or your own my_module:MyDataset.")
ROOT = click.option("--root", type=PATH, required=True, help="Folder of the dataset.")
SPLIT = click.option("--split", required=True, help="Split of the dataset, for example train; SPLIT-mirror flips it.")
TRACKER = click.option(
    "--tracker", default="flow", show_default=True, help=f"{', '.join(TRACKERS)}, or your own my_module:MyTracker."
)
ENCODER = click.option(
    "--encoder", default="hashed", show_default=True, help=f"{', '.join(TEXT_ENCODERS)}, or your own my_module:MyEncoder."
)
SET = click.option(
    "--set", "overrides", multiple=True, metavar="K=V", help="One setting; may repeat. `rvos-cache settings NAME` lists them."
)
CORRUPT = click.option(
    "--corrupt", metavar="NAME:1-5", help="Corruption applied to the frames first, for example gaussian_noise:5 (ImageNet-C)."
)
BUDGET = click.option(
    "--budget",
    callback=to_bytes,
    metavar="SIZE",
    help="Stop before starting if more bytes are needed on disk, as far as the tracker knows; plan measures them. For example 200GB.",
)
OUT = click.option("--out", type=PATH, required=True, help="Cache to write (.zarr): a path, or s3://bucket/name.zarr.")
JOBS = click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine.")
VIDEOS = click.option("--video", "videos", multiple=True, help="Only this video; may repeat.")
LIMIT = click.option("--limit", type=click.IntRange(1), help="Only the first N videos.")
SHARD = click.option("--shard", default="1/1", show_default=True, metavar="I/N", help="Every N-th video from the I-th.")


def _device_name(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    try:
        return value if value is None else check_name(value)
    except InputError as error:
        raise click.BadParameter(str(error)) from None


def DEVICE(command: F) -> F:
    """--device: the command runs its models there. It takes no argument of it."""

    @click.option(
        "--device",
        callback=_device_name,
        metavar="cpu|cuda|cuda:N",
        help="Where models run.  [default: a GPU if there is one, else the CPU]",
    )
    @functools.wraps(command)
    def with_device(*arguments: Any, device: str | None, **named: Any) -> Any:
        if device is not None and named.get("engine") == "ray":
            raise click.UsageError("--device is for --engine local; Ray gives each worker a GPU, or none with --ray-cores")
        with on_device(device):
            return command(*arguments, **named)

    return cast(F, with_device)


def ENGINE(command: F) -> F:
    """--engine and the options of each, as keywords of `rvos_cache.extraction.engine_of`."""
    for option in (
        click.option("--ray-cores", type=click.IntRange(1), metavar="N", help="One Ray worker per N cores.  [default: per GPU]"),
        click.option("--ray-address", metavar="ADDRESS", help="Ray cluster.  [default: RAY_ADDRESS, or this machine's]"),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="Run on this machine, or on a Ray cluster.",
        ),
    ):
        command = option(command)
    return command
