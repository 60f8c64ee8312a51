"""Which tracks are merged, and what lies on disk after whole, repeated and interrupted runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chain import NAMES, SIZE, truth_masks, write_cache, write_perfect

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.media.mask_png import read_mask_png
from rvos_cache.store import CacheWriter, Card, SelectionCache, SelectionRecord, write_selections
from rvos_cache.types import Selection
from rvos_select.merging.merge import RECORD, _write, merge, merge_masks
from rvos_select.merging.policy import PolicyOptions, SelectionPolicy


def selection(scores: list[float], candidates: list[bool] | None = None, masks: RleMasks | None = None) -> Selection:
    mine = np.array([True] * len(scores) if candidates is None else candidates, bool)
    return Selection("0", np.array(scores, np.float32), mine, masks)


def test_merged_is_the_or_of_pixels() -> None:
    dense = np.random.default_rng(0).random((4, 3, 9, 11)) > 0.7
    merged = merge_masks(selection([0.9, 0.1, 0.8, 0.7]), RleMasks.from_dense(dense), SelectionPolicy(0.5))
    assert np.array_equal(merged.dense()[0], dense[[0, 2, 3]].any(0))
    assert not merge_masks(selection([0.1] * 4), RleMasks.from_dense(dense), SelectionPolicy(0.5)).dense().any()


def test_drawn_masks_replace_the_tracks() -> None:
    own_masks = RleMasks.from_dense(np.ones((1, 3, 9, 11), bool))
    assert merge_masks(selection([0.9], masks=own_masks), RleMasks.empty(5, 3, (9, 11)), SelectionPolicy(0.5)).dense().all()
    with pytest.raises(InputError, match="has 1 scores, the caches have 5 tracks"):
        merge_masks(selection([0.9]), RleMasks.empty(5, 3, (9, 11)), SelectionPolicy(0.5))


def test_pngs_of_a_split(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c.zarr")
    selections = write_perfect(tmp_path / "s.zarr", cache)
    out = merge(selections, [cache], tmp_path / "png")
    both = truth_masks(2).any(0)
    for t, name in enumerate(NAMES):
        assert np.array_equal(read_mask_png(out / "a" / "1" / f"{name}.png", SIZE), both[t])
        assert not read_mask_png(out / "a" / "2" / f"{name}.png", SIZE).any()
    first = (out / "a/1/00000.png").stat().st_mtime_ns
    shutil.rmtree(out / "b" / "0")
    (out / "b" / ".part-0.1").mkdir()
    merge(selections, [cache], out)
    assert (out / "a/1/00000.png").stat().st_mtime_ns == first
    assert sorted(p.name for p in (out / "b").iterdir()) == ["0"]
    assert len(list((out / "b" / "0").iterdir())) == len(NAMES)
    with pytest.raises(InputError, match="holds masks of threshold = 0.5, now it is 0.7; remove it"):
        merge(selections, [cache], out, PolicyOptions(0.7))


def test_going_on_after_a_video_was_predicted_later(tmp_path: Path) -> None:
    """The masks of the others stay; those of another run, or of other selections by the same, are refused."""
    cache = write_cache(tmp_path / "c.zarr")
    out = merge(write_perfect(tmp_path / "s.zarr", cache, videos=("a",)), [cache], tmp_path / "png")
    first = (out / "a/1/00000.png").stat().st_mtime_ns
    selections = write_perfect(tmp_path / "s.zarr", cache)
    assert merge(selections, [cache], out) == out
    assert (out / "a/1/00000.png").stat().st_mtime_ns == first and (out / "b/0/00002.png").exists()
    merge(write_perfect(tmp_path / "part.zarr", cache, videos=("b",)), [cache], out)
    before = sorted(p.name for p in out.rglob("*"))
    other = write_perfect(tmp_path / "other.zarr", cache, producer="run2")
    changed = CacheWriter(tmp_path / "changed.zarr", SelectionCache(selections).card)
    once = tuple(
        Selection(s.expression_id, s.scores[::-1].copy(), s.candidates) for s in SelectionCache(selections).selections("a")
    )
    write_selections(changed, SelectionRecord("a", NAMES, SIZE, once))
    for wrong, message in (
        (other, "holds masks of selections.producer = 'run', now it is 'run2'"),
        (changed.path, "holds masks of other selections of video a; remove it"),
    ):
        with pytest.raises(InputError, match=message):
            merge(wrong, [cache], out)
    assert sorted(p.name for p in out.rglob("*")) == before


@pytest.mark.parametrize(
    ("same", "others"),
    [
        (
            [PolicyOptions(), PolicyOptions(0.5), PolicyOptions(empty="zeros")],
            [PolicyOptions(empty="top1"), PolicyOptions(top1=True), PolicyOptions(0.6)],
        ),
        ([PolicyOptions(top1=True)], [PolicyOptions(0.95, empty="top1"), PolicyOptions()]),
        ([PolicyOptions(empty="top1")], [PolicyOptions(), PolicyOptions(top1=True)]),
    ],
)
def test_a_folder_holds_masks_of_one_policy(tmp_path: Path, same: list[PolicyOptions], others: list[PolicyOptions]) -> None:
    """Options that resolve to the same policy go on; others, and a damaged record, are refused and change nothing."""
    cache = write_cache(tmp_path / "c.zarr")
    selections = write_perfect(tmp_path / "s.zarr", cache)
    out = merge(selections, [cache], tmp_path / "png", same[0])
    record = (out / RECORD).read_text()
    for options in others:
        with pytest.raises(InputError, match=r"holds masks of (threshold|top1|empty) = "):
            merge(selections, [cache], out, options)
        assert (out / RECORD).read_text() == record
    for options in same:
        shutil.rmtree(out / "b/0")
        merge(selections, [cache], out, options)
        assert (out / RECORD).read_text() == record and (out / "b/0/00002.png").exists()
    for damaged in ("", "[]", json.dumps({key: value for key, value in json.loads(record).items() if key != "empty"})):
        (out / RECORD).write_text(damaged)
        with pytest.raises(InputError, match="(not a record of merge|holds masks of empty = None, now it is )"):
            merge(selections, [cache], out, same[0])


def test_the_best_track_is_drawn_where_none_is_above(tmp_path: Path) -> None:
    """Expression 2 names nothing and scores 0.1 throughout: its mask is the first track's, nothing, or the best's alone."""
    cache = write_cache(tmp_path / "c.zarr")
    selections = write_perfect(tmp_path / "s.zarr", cache)
    expected = {"zeros": np.zeros_like(truth_masks(1)[0]), "top1": truth_masks(1)[0]}
    for empty in ("zeros", "top1"):
        out = merge(selections, [cache], tmp_path / empty, PolicyOptions(empty=empty))
        for t, name in enumerate(NAMES):
            assert np.array_equal(read_mask_png(out / "a" / "2" / f"{name}.png", SIZE), expected[empty][t])
            assert np.array_equal(read_mask_png(out / "a" / "1" / f"{name}.png", SIZE), truth_masks(2).any(0)[t])


def test_no_candidate_is_an_empty_mask_whatever_is_asked() -> None:
    tracks = RleMasks.from_dense(np.ones((2, 3, 9, 11), bool))
    for policy in (SelectionPolicy(0.5), SelectionPolicy(0.5, empty="top1"), SelectionPolicy(0.5, top1=True)):
        for one, masks in ((selection([0.9, 0.9], [False, False]), tracks), (selection([]), RleMasks.empty(0, 3, (9, 11)))):
            merged = merge_masks(one, masks, policy)
            assert merged.shape == (1, 3) and not merged.area().any()


@pytest.mark.parametrize(("empty", "expected"), [("zeros", []), ("top1", [1])])
def test_the_best_query_is_drawn_though_its_score_is_low(empty: Any, expected: list[int]) -> None:
    """Of an expression's queries only the best was drawn: none has a score above 0.1, and the others have no mask."""
    dense = np.zeros((3, 2, 9, 11), bool)
    dense[1, :, 2:5, 3:7] = True
    own_masks = selection([0.04, 0.08, 0.06], [False, True, False], RleMasks.from_dense(dense))
    merged = merge_masks(own_masks, RleMasks.empty(0, 2, (9, 11)), SelectionPolicy(0.1, empty=empty))
    assert np.array_equal(merged.dense()[0], dense[expected].any(0))


def test_damaged_selections_stop_no_other(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c.zarr")
    selections = write_perfect(tmp_path / "s.zarr", cache)
    scores = selections / "videos/a/scores/c/0/0"
    whole = scores.read_bytes()
    scores.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"1 videos have no masks, first a: .*scores/c/0/0"):
        merge(selections, [cache], tmp_path / "png")
    assert (tmp_path / "png/b/0/00002.png").exists() and not (tmp_path / "png/a").exists()
    scores.write_bytes(whole)
    merge(selections, [cache], tmp_path / "png")
    assert (tmp_path / "png/a/2/00002.png").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c.zarr")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not written by merge"):
        merge(write_perfect(tmp_path / "s.zarr", cache), [cache], tmp_path / "mine")
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"


def test_a_damaged_video_stops_no_other(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c.zarr")
    selections = write_perfect(tmp_path / "s.zarr", cache)
    runs = cache / "videos/a/mask_rle/c/0"
    whole = runs.read_bytes()
    runs.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"1 videos have no masks, first a: .*mask_rle/c/0"):
        merge(selections, [cache], tmp_path / "png")
    assert (tmp_path / "png/b/0/00002.png").exists()
    runs.write_bytes(whole)
    merge(selections, [cache], tmp_path / "png")
    assert (tmp_path / "png/a/2/00002.png").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("settings", {"size": 9}, "settings"),
        ("producer", "other", "producer"),
        (None, None, r"made of 2 caches \(flow of mevis/valid_u, flow of mevis/valid_u\), 1 was given"),
    ],
)
def test_selections_of_other_caches_are_refused(tmp_path: Path, field: str | None, value: object, message: str) -> None:
    cache = write_cache(tmp_path / "c.zarr")
    bound = SelectionCache(write_perfect(tmp_path / "s.zarr", cache)).card
    one = {"dataset": "mevis", "split": "valid_u", "producer": "flow", "settings": {}, "weights": {}}
    cards = [one, one] if field is None else [{**one, field: value}]
    selections = tmp_path / "t.zarr"
    CacheWriter(selections, bound.model_copy(update={"extra": {**bound.extra, "tracks": cards}}))
    with pytest.raises(InputError, match=message) as error:
        merge(selections, [cache], tmp_path / "png")
    assert "give the same --cache as for predict" in str(error.value)


def write_record(path: Path, video: str, frame_names: tuple[str, ...], selections: tuple[Selection, ...]) -> Path:
    card = Card(kind="selections", dataset="mevis", split="valid_u", producer="run", extra={"threshold": 0.5})
    write_selections(CacheWriter(path, card), SelectionRecord(video, frame_names, SIZE, selections))
    return path


def test_a_track_that_is_not_the_first(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c.zarr")
    one = Selection("0", np.array([0.1, 0.9, 0.1, 0.1, 0.1], np.float32), np.ones(5, bool))
    out = merge(write_record(tmp_path / "s.zarr", "a", NAMES, (one,)), [cache], tmp_path / "png")
    for t, name in enumerate(NAMES):
        assert np.array_equal(read_mask_png(out / "a/0" / f"{name}.png", SIZE), truth_masks(2)[1, t])


def test_selections_of_other_frames_are_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c.zarr")
    one = Selection("0", np.full(5, 0.9, np.float32), np.ones(5, bool))
    selections = write_record(tmp_path / "s.zarr", "a", NAMES[:2], (one,))
    with pytest.raises(
        InputError, match=r"s.zarr, video a: made of other frames .* it had 2 frames .* has 3 of .*; predict again"
    ):
        merge(selections, [cache], tmp_path / "png")


def test_a_folder_that_another_process_wrote_first(tmp_path: Path) -> None:
    """It stays; a rename that fails for another reason is raised."""
    pictures = [("0.png", b"mine")]
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.png").write_bytes(b"theirs")
    _write(pictures, [tmp_path / "a"])
    assert (tmp_path / "a/0.png").read_bytes() == b"theirs"
    (tmp_path / "b").write_bytes(b"a file")
    with pytest.raises(OSError):
        _write(pictures, [tmp_path / "b"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_an_out_that_cannot_be_written(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c.zarr")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the masks") as error:
        merge(write_perfect(tmp_path / "s.zarr", cache), [cache], tmp_path / "file/png")
    assert "\n" not in str(error.value) and str(tmp_path / "file") in str(error.value)
