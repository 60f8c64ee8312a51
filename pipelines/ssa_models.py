"""The frozen CLIP and the first weights of SSA's tables, and the options that say where they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rvos_cache.errors import InputError
from rvos_cache.pretrained import resolve_checkpoint
from rvos_cache.settings import merge, parse_overrides

FRAMES = {"short_side": 480}
"""Frames are stored at the larger of the two sizes that the released code tests at; it trains at most at 600."""


@dataclass(frozen=True)
class Models:
    """extraction: arguments of `extract_all`; training: settings of every training run."""

    extraction: dict[str, Any]
    training: dict[str, Any]


def ssa_models(page: Callable[..., None]) -> Callable[..., None]:
    """--clip, --init, --jobs and --tracker-set, which the page takes as one argument, `models`."""

    @click.option("--clip", required=True, help="A folder that rvos-cache convert-clip wrote.")
    @click.option(
        "--init",
        type=click.Path(path_type=Path),
        help="A Mask2Former of COCO with this CLIP, which every released run starts from.  [default: random weights]",
    )
    @click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that extract.")
    @click.option("--tracker-set", multiple=True, metavar="K=V", help="A setting of the tracker `frames`, e.g. short_side=0.")
    @functools.wraps(page)
    def with_models(*args: Any, clip: str, init: Path | None, jobs: int, tracker_set: tuple[str, ...], **others: Any) -> None:
        if not Path(resolve_checkpoint(clip)).is_dir():
            raise InputError(f"{clip}: there is no such folder; give one that rvos-cache convert-clip wrote: --clip CLIP")
        if init is not None and not init.exists():
            # Training would say it after hours of extraction.
            raise InputError(f"{init}: there is no such checkpoint or run; give another --init, or none for random weights")
        extraction = {
            "tracker": "frames",
            "encoder": "clip",
            "overrides": merge(FRAMES, parse_overrides(tracker_set)),
            "text_overrides": {"checkpoint": clip},
            "jobs": jobs,
        }
        training: dict[str, Any] = {"config": {"clip": clip}, **({} if init is None else {"init": str(init)})}
        page(*args, models=Models(extraction, training), **others)

    return with_models
