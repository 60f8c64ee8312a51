"""Ref-DAVIS17 as DAVIS's unsupervised protocol scores it: `evaluate_davis` behind the seam of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError
from rvos_select.caches import TrackSource
from rvos_select.evaluate_davis import evaluate_ref_davis_pngs, evaluate_ref_davis_selections

OPTIONS = frozenset({"strict"})


def evaluate_pngs(
    dataset: str, root: Path, split: str, predictions: Path, texts: Sequence[Path] = (), **given: Any
) -> dict[str, Any]:
    """See `evaluate_ref_davis_pngs`. Raises InputError, also for text caches: objects, and not texts, are scored."""
    _no_texts(texts)
    return {"dataset": dataset, "split": split, **evaluate_ref_davis_pngs(root, split, predictions, **given)}


def evaluate_selections(
    selections: Path,
    caches: Sequence[Path],
    dataset: str | None = None,
    threshold: float | None = None,
    top1: bool = False,
    texts: Sequence[Path] = (),
    **given: Any,
) -> dict[str, Any]:
    """See `evaluate_ref_davis_selections`; the best track of each expression unless a threshold is given. Raises InputError."""
    _no_texts(texts)
    best = top1 or threshold is None
    found = evaluate_ref_davis_selections(selections, caches, threshold=threshold, top1=best, **given)
    card = TrackSource(caches).card
    return {"dataset": card.dataset, "split": card.split, **found}


def _no_texts(texts: Sequence[Path]) -> None:
    if texts:
        raise InputError(f"{texts[0]}: slices by the text are no part of the scores of Ref-DAVIS17; leave --text out")
