"""The frozen models of DMVS's tables, and the options that say where they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from rvos_cache.settings import merge, parse_overrides

TEXT = {"checkpoint": "FacebookAI/roberta-base", "normalise": "lower"}
"""Frozen RoBERTa, of sentences in lower case as its relatives' (Fang et al., CVPR 2025, section 4.2)."""
TRACKER = {"profile": "exact"}
"""All of VITA's mask features, a terabyte for MeViS's training split; `rvos-cache plan` says how much less others take."""


def frozen_models(page: Callable[..., None]) -> Callable[..., None]:
    """--vita, --encoder, --jobs and --tracker-set, which the page takes as one argument: `models`, for `extract_all`."""

    @click.option("--vita", required=True, help="A hub name or a folder that rvos-cache convert-vita wrote.")
    @click.option("--encoder", default="roberta", show_default=True, help="Name in TEXT_ENCODERS, or package.module:Class.")
    @click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that extract.")
    @click.option("--tracker-set", multiple=True, metavar="K=V", help="A setting of the tracker, e.g. profile=low_rank.")
    @functools.wraps(page)
    def with_models(*args: Any, vita: str, encoder: str, jobs: int, tracker_set: tuple[str, ...], **others: Any) -> None:
        models = {
            "tracker": "vita",
            "encoder": encoder,
            "overrides": merge({**TRACKER, "checkpoint": vita}, parse_overrides(tracker_set)),
            "text_overrides": TEXT if encoder == "roberta" else None,
            "jobs": jobs,
        }
        page(*args, models=models, **others)

    return with_models
