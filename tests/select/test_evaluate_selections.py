"""Selections that are scored: with masks of their own, and with caches or datasets that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chain import NAMES, SIZE, truth_masks, write_cache, write_perfect, write_split

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.store import CacheWriter, Card, SelectionCache, SelectionRecord, TrackCache, write_selections
from rvos_cache.types import Selection
from rvos_select.evaluation import Scope, evaluate_selections


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """data, c.zarr and s.zarr, whose selections are exactly right."""
    write_split(tmp_path / "data")
    write_perfect(tmp_path / "s.zarr", write_cache(tmp_path / "c.zarr"))
    return tmp_path


def write_record(path: Path, frame_names: tuple[str, ...], selections: list[Selection], **extra: Any) -> Path:
    """Selections of video a."""
    card = Card(kind="selections", dataset="mevis", split="valid_u", producer="run", extra={"threshold": 0.5, **extra})
    write_selections(CacheWriter(path, card), SelectionRecord("a", frame_names, SIZE, tuple(selections)))
    return path


def test_selections_with_masks_of_their_own(split: Path) -> None:
    """Two queries for each expression: a/0 selects its own object, a/1 both, a/2 the wrong one."""
    masks = RleMasks.from_dense(truth_masks(2))
    scores = {"0": [0.9, 0.1], "1": [0.9, 0.8], "2": [0.1, 0.9]}
    queries = [Selection(e, np.array(row, np.float32), np.ones(2, bool), masks) for e, row in scores.items()]
    selections = write_record(split / "q.zarr", NAMES, queries)
    numbers = evaluate_selections(selections, [split / "c.zarr"], scope=Scope(videos=["a"]))["expressions"]
    assert {key: row["j"] for key, row in numbers.items()} == {"a/0": 1, "a/1": 1, "a/2": 0}


def test_frames_and_caches_that_do_not_fit(split: Path) -> None:
    """Selections of other frames or other tracks, and a dataset that has other frames by now."""
    cache, perfect = split / "c.zarr", SelectionCache(split / "s.zarr").selections("a")
    short = write_record(split / "short.zarr", NAMES[:2], list(perfect))
    with pytest.raises(InputError, match="video a: made of other frames .* it had 2 frames .* has 3 of"):
        evaluate_selections(short, [cache], scope=Scope(videos=["a"]))
    other = write_record(split / "other.zarr", NAMES, list(perfect), tracks=[{"producer": "sam2"}])
    with pytest.raises(InputError, match="made of tracks with producer sam2, .* has flow"):
        evaluate_selections(other, [cache])
    train = CacheWriter(split / "train.zarr", TrackCache(cache).card.model_copy(update={"split": "train"})).path
    with pytest.raises(InputError, match="caches of several splits were given; leave --root out"):
        evaluate_selections(split / "s.zarr", [cache, train], root=split / "data")
    folder = split / "data/valid_u"
    meta, masks = (json.loads((folder / name).read_text()) for name in ("meta_expressions.json", "mask_dict.json"))
    meta["videos"]["a"]["frames"].pop()
    (folder / "meta_expressions.json").write_text(json.dumps(meta))
    (folder / "mask_dict.json").write_text(json.dumps({key: rows[:2] if key in "12" else rows for key, rows in masks.items()}))
    with pytest.raises(InputError, match="video a: extracted from other data than .*: it had 3 frames of .* and has 2 of"):
        evaluate_selections(split / "s.zarr", [cache], root=split / "data")
