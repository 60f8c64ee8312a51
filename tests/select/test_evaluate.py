"""Scores of whole splits: both routes, holes, the oracle."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from chain import EXPRESSIONS, NAMES, write_cache, write_perfect, write_split

from rvos_cache.errors import InputError
from rvos_select.evaluate import evaluate_pngs, evaluate_selections
from rvos_select.merge import merge
from rvos_select.oracle import oracle

KEYS = {f"{video}/{e}" for video, held in EXPRESSIONS.items() for e in held}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, c.zarr, s.zarr and png: all exactly right."""
    out = tmp_path_factory.mktemp("made")
    write_split(out / "data")
    cache = write_cache(out / "c.zarr")
    merge(write_perfect(out / "s.zarr", cache), [cache], out / "png")
    return out


@pytest.fixture
def split(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(made, tmp_path / "split")


def test_truth_as_prediction_scores_one_by_every_route(split: Path) -> None:
    pngs = evaluate_pngs("mevis", split / "data", "valid_u", split / "png")
    own = evaluate_selections(split / "s.zarr", [split / "c.zarr"])
    given = evaluate_selections(split / "s.zarr", [split / "c.zarr"], root=split / "data")
    best = oracle([split / "c.zarr"])
    for scores in (pngs, own, given, best):
        assert (scores["j"], scores["f"], scores["jf"]) == (1.0, 1.0, 1.0)
        assert scores["expressions"].keys() == KEYS
        assert "missing" not in scores
    assert pngs["kinds"]["motion"]["count"] == 2
    assert given["kinds"]["static"]["count"] == 2
    assert best["objects"] == {"a/1": 1.0, "a/2": 1.0, "b/3": 1.0}


def test_one_wrong_frame(split: Path) -> None:
    """An empty frame of one expression costs a third of it, and a twelfth of the split."""
    cv2.imwrite(str(split / "png/b/0/00001.png"), np.zeros((24, 32), np.uint8))
    scores = evaluate_pngs("mevis", split / "data", "valid_u", split / "png")
    assert scores["expressions"]["b/0"] == pytest.approx({"j": 2 / 3, "f": 2 / 3})
    assert scores["jf"] == pytest.approx(11 / 12)
    assert evaluate_pngs("mevis", split / "data", "valid_u", split / "png", videos=["a"])["jf"] == 1.0
    assert evaluate_pngs("mevis", split / "data", "valid_u", split / "png", limit=1)["expressions"].keys() == KEYS - {"b/0"}


def test_a_missing_frame_is_named_or_scored_zero(split: Path) -> None:
    (split / "png/b/0" / f"{NAMES[2]}.png").unlink()
    with pytest.raises(InputError, match=r"b/0/00002\.png"):
        evaluate_pngs("mevis", split / "data", "valid_u", split / "png")
    scores = evaluate_pngs("mevis", split / "data", "valid_u", split / "png", allow_missing=True)
    assert scores["missing"] == ["b/0"]
    assert scores["jf"] == 0.75


def test_a_video_without_selections_or_tracks(split: Path) -> None:
    cache = write_cache(split / "part.zarr", videos=("a",))
    said = write_perfect(split / "part-s.zarr", cache, videos=("a",))
    with pytest.raises(InputError, match="b/0"):
        evaluate_selections(said, [cache], root=split / "data")
    with pytest.raises(InputError, match="video b"):
        oracle([cache], root=split / "data")
    for scores in (
        evaluate_selections(said, [cache], root=split / "data", allow_missing=True),
        oracle([cache], root=split / "data", allow_missing=True),
    ):
        assert scores["missing"] == ["b/0"]
        assert scores["jf"] == 0.75


def test_settings_of_the_merge_reach_the_scores(split: Path) -> None:
    everything = evaluate_selections(split / "s.zarr", [split / "c.zarr"], threshold=0.05)
    nothing = evaluate_selections(split / "s.zarr", [split / "c.zarr"], threshold=0.95)
    best = evaluate_selections(split / "s.zarr", [split / "c.zarr"], top1=True)
    assert nothing["jf"] == 0.25  # only the expression without target
    assert everything["expressions"]["b/0"]["j"] == pytest.approx(7 / 9)
    assert best["expressions"]["a/0"]["j"] == 1.0
    assert best["expressions"]["a/1"]["j"] == pytest.approx(0.5)
    assert best["expressions"]["a/2"]["j"] == 0.0


def test_training_tracks_are_refused(split: Path) -> None:
    cache = write_cache(split / "gt.zarr", training_only=True)
    with pytest.raises(InputError, match="training only"):
        oracle([cache])


def test_other_splits_and_videos_are_refused(split: Path) -> None:
    with pytest.raises(InputError, match="not split train"):
        oracle([split / "c.zarr"], split="train")
    with pytest.raises(InputError, match="no video zebra"):
        evaluate_pngs("mevis", split / "data", "valid_u", split / "png", videos=["zebra"])
    with pytest.raises(InputError, match="no such folder"):
        evaluate_pngs("mevis", split / "data", "valid_u", split / "nothing")


def test_processes_change_nothing(split: Path) -> None:
    one, two = (evaluate_pngs("mevis", split / "data", "valid_u", split / "png", processes=n) for n in (1, 2))
    assert one == two
