"""Scores of predictions, from selections or from PNGs, by the protocol of their dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError
from rvos_select.evaluation import Scope, benchmark_pngs, benchmark_selections
from rvos_select.merging.policy import PolicyOptions
from rvos_select.paths import PathLike, Paths, as_paths


def evaluate(
    selections: PathLike | None = None,
    tracks: Paths = (),
    *,
    predictions: PathLike | None = None,
    dataset: str | None = None,
    root: PathLike | None = None,
    split: str | None = None,
    threshold: float | None = None,
    top1: bool = False,
    empty: Any = None,
    videos: Sequence[str] = (),
    limit: int | None = None,
    allow_missing: bool = False,
    processes: int = 1,
    texts: Paths = (),
    also: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Scores in fractions of 1, as `rvos-select evaluate --json` writes them: "jf", "j", "f", "expressions", "slices" ...

    selections, tracks: a selections cache and the tracks caches that it was made of; or predictions: a folder
    `<video>/<expression>/<frame>.png`, with dataset, root and split. Where the ground truth lies is by default what the cache's
    card says. threshold, top1, empty: the selection policy, by default the selector's; videos, limit: only these; allow_missing:
    a missing prediction scores 0; texts: for slices by kind; also: further metrics (`metrics.table.ALSO`); options: of the
    dataset's protocol, `map_mode` or `strict`.
    Raises InputError for caches that do not fit together, a missing prediction, or an option that the protocol does not have.
    """
    scope = Scope(videos, limit, allow_missing, processes, as_paths(texts), also)
    folder = None if root is None else Path(root)
    policy = PolicyOptions(threshold, top1, empty)
    if (selections is None) == (predictions is None):
        raise InputError("evaluate needs either selections with their tracks caches, or a folder of predictions")
    if predictions is not None:
        if dataset is None or folder is None or split is None:
            raise InputError("predictions are PNGs, which need dataset, root and split to be scored")
        if policy != PolicyOptions():
            raise InputError("threshold, top1 and empty choose tracks of selections; PNGs are merged already")
        return benchmark_pngs(dataset, folder, split, Path(predictions), options, scope)
    assert selections is not None
    return benchmark_selections(
        Path(selections), as_paths(tracks), options, dataset=dataset, root=folder, split=split, policy=policy, scope=scope
    )
