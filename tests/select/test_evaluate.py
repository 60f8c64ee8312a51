"""Scores of whole splits: both routes, holes, the oracle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from chain import EXPRESSIONS, NAMES, write_cache, write_perfect, write_split

from rvos_cache.errors import InputError
from rvos_cache.store import CacheWriter
from rvos_select.caches import TrackSource
from rvos_select.evaluate import _map, _score_masks, evaluate_pngs, evaluate_selections
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


def test_the_caches_answer_where_the_dataset_is_gone(split: Path) -> None:
    """The hint in the card leads to the dataset, then to one that lost a video's frames, then to a broken one, then nowhere."""
    cache = write_cache(split / "h.zarr", root=split / "data")
    said = write_perfect(split / "h-s.zarr", cache)
    assert "kinds" in evaluate_selections(said, [cache])
    shutil.rmtree(split / "data/valid_u/JPEGImages/b")
    with pytest.raises(InputError, match="JPEGImages/b"):
        evaluate_selections(said, [cache], root=split / "data")
    lost = evaluate_selections(said, [cache])
    (split / "data/valid_u/meta_expressions.json").write_text("{")
    broken = evaluate_selections(said, [cache])
    shutil.rmtree(split / "data")
    for scores in (lost, broken, evaluate_selections(said, [cache])):
        assert scores["jf"] == 1.0
        assert scores["expressions"].keys() == KEYS


def test_a_failed_video_is_a_hole(split: Path) -> None:
    """Its expressions score 0 each where the dataset knows them, and count as one where nobody does."""
    cache = write_cache(split / "f.zarr", videos=("b",))
    CacheWriter(cache, TrackSource([cache]).card).fail("a", "truncated")
    said = write_perfect(split / "f-s.zarr", cache, videos=("b",))
    for root in (None, split / "data"):
        with pytest.raises(InputError, match="--allow-missing"):
            evaluate_selections(said, [cache], root=root)
    unknown = evaluate_selections(said, [cache], allow_missing=True)
    known = evaluate_selections(said, [cache], root=split / "data", allow_missing=True)
    assert (unknown["missing"], unknown["jf"]) == (["a"], 0.5)
    assert (known["missing"], known["jf"]) == (["a/0", "a/1", "a/2"], 0.25)
    assert evaluate_selections(said, [cache], videos=["b"])["jf"] == 1.0


def test_a_video_that_cannot_be_read_is_a_hole_too(split: Path) -> None:
    path = split / "data/valid_u/meta_expressions.json"
    path.write_text(path.read_text().replace('"thing 2"', '" "'))
    with pytest.raises(InputError, match="expression 2: the text is empty"):
        evaluate_pngs("mevis", split / "data", "valid_u", split / "png")
    scores = evaluate_pngs("mevis", split / "data", "valid_u", split / "png", allow_missing=True)
    assert (scores["missing"], scores["jf"]) == (["a/0", "a/1", "a/2"], 0.25)


def test_hidden_answers_are_no_hole(split: Path) -> None:
    (split / "data/valid_u").rename(split / "data/valid")
    (split / "data/valid/mask_dict.json").unlink()
    with pytest.raises(InputError, match="hides its answers"):
        evaluate_pngs("mevis", split / "data", "valid", split / "png", allow_missing=True)


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


def test_processes_read_only_the_next_tasks() -> None:
    """The first result of two processes is there before a tenth of 1000 tasks has been made."""
    made = []

    def tasks() -> Iterator[tuple[Any, ...]]:
        for i in range(1000):
            made.append(i)
            yield None, str(i), None, None, None

    rows = _map(_score_masks, (), tasks(), 2)
    assert next(rows) == ("0", None, None)
    assert len(made) < 100
    assert [key for key, _, _ in rows] == [str(i) for i in range(1, 1000)]
