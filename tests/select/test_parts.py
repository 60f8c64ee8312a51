"""Queries whose track changes (`Selection.parts`): their masks, scores, label maps, submissions, page, and every command."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import chain
import davis_fixtures as davis
import numpy as np
import pytest
from chain import EXPRESSIONS, NAMES, SIZE, WEIGHTS, write_cache, write_run, write_split
from odd_videos import EXPRESSIONS as VIDEO_EXPRESSIONS
from odd_videos import SIZE as VIDEO_SIZE
from odd_videos import write_split as write_videos
from test_dataset_contract import SAMPLES
from test_evaluate_benchmarks import write_truth

import rvos_cache as rc
import rvos_select as rs
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.media.mask_png import read_mask_png
from rvos_cache.store import CacheWriter, Card, SelectionCache, SelectionRecord, TrackCache, verify, write_selections
from rvos_cache.types import Selection
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation import Scope, evaluate_pngs, evaluate_selections
from rvos_select.evaluation.image import evaluate_selections as evaluate_images
from rvos_select.evaluation.ref_davis import evaluate_selections as evaluate_davis
from rvos_select.merging.label_maps import Frames, SelectionPredictions
from rvos_select.merging.merge import merge, merge_masks, write_masks
from rvos_select.merging.policy import PolicyOptions, SelectionPolicy
from rvos_select.reporting import report
from rvos_select.submission import submit_selections

POLICIES = (PolicyOptions(), PolicyOptions(0.2), PolicyOptions(top1=True), PolicyOptions(0.97), PolicyOptions(0.97, empty="top1"))


def identity(tracks: int, frames: int) -> np.ndarray:
    """parts[q, t] = q."""
    return np.repeat(np.arange(tracks, dtype=np.int32)[:, None], frames, 1)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def write_all(
    path: Path, videos: Sequence[str], make: Callable[[str, str], Selection], weights: dict[str, str] | None = None
) -> Path:
    """Selections of the expressions of the chain's videos."""
    card = Card(
        kind="selections", dataset="mevis", split="valid_u", producer="run", weights=weights or {}, extra={"threshold": 0.5}
    )
    writer = CacheWriter(path, card)
    for video in videos:
        selections = tuple(make(video, expression) for expression in EXPRESSIONS[video])
        write_selections(writer, SelectionRecord(video, NAMES, SIZE, selections))
    return path


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """data, c.zarr, and thin.zarr with other tracks of the same videos."""
    write_split(tmp_path / "data")
    write_cache(tmp_path / "c.zarr", tmp_path / "data")
    write_cache(tmp_path / "thin.zarr", tmp_path / "data", thin=True)
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*every mask is empty")
def test_parts_of_the_identity_are_the_tracks(split: Path) -> None:
    """Byte-identical PNGs and equal scores, with every policy, and where a track is no candidate."""
    rng, cache = np.random.default_rng(0), [split / "c.zarr"]
    rows = {}
    for video, expressions in EXPRESSIONS.items():
        n = TrackCache(cache[0]).info(video).tracks
        rows |= {(video, e): (rng.random(n).astype(np.float32), rng.random(n) > 0.3) for e in expressions}
    plain = write_all(split / "plain.zarr", "ab", lambda v, e: Selection(e, *rows[v, e]))
    parts = write_all(
        split / "parts.zarr", "ab", lambda v, e: Selection(e, *rows[v, e], parts=identity(len(rows[v, e][0]), len(NAMES)))
    )
    for i, policy in enumerate(POLICIES):
        masks = [files(merge(s, cache, split / f"{s.stem}-{i}", policy)) for s in (plain, parts)]
        assert masks[0] == masks[1] and len(masks[0]) == 4 * len(NAMES)
        scores = [evaluate_selections(s, cache, policy=policy) for s in (plain, parts)]
        assert scores[0] == scores[1]


@pytest.mark.parametrize("queries", [0, 2, 9])
@pytest.mark.filterwarnings("ignore:.*every mask is empty")
def test_shuffled_parts_are_masks_gathered_by_hand(split: Path, queries: int) -> None:
    """Of the tracks of two caches, counted over both in their order; fewer and more queries than tracks, with frames of none."""
    rng, caches = np.random.default_rng(queries), [split / "c.zarr", split / "thin.zarr"]
    dense = {v: np.concatenate([TrackCache(c).masks(v).dense() for c in caches]) for v in EXPRESSIONS}
    by_expression: dict[tuple[str, str], Selection] = {}

    def make(video: str, expression: str) -> Selection:
        parts = rng.integers(-1, len(dense[video]), (queries, len(NAMES))).astype(np.int32)
        scores = rng.random(queries).astype(np.float32)
        by_expression[video, expression] = Selection(expression, scores, rng.random(queries) > 0.2, parts=parts)
        return by_expression[video, expression]

    selections = write_all(split / "s.zarr", "ab", make)
    source = TrackSource(caches)
    for i, (options, policy) in enumerate(
        zip(POLICIES[:3], (SelectionPolicy(0.5), SelectionPolicy(0.2), SelectionPolicy(0, True)))
    ):
        out = merge(selections, caches, split / f"png{i}", options)
        for (video, expression), selection in by_expression.items():
            none = np.zeros((1, *dense[video].shape[1:]), bool)
            own = np.concatenate([dense[video], none])[selection.parts, np.arange(len(NAMES))]
            expected = own[policy(selection)].any(0)
            written = np.stack([read_mask_png(out / video / expression / f"{name}.png", SIZE) for name in NAMES])
            assert np.array_equal(written, expected)
            assert np.array_equal(merge_masks(selection, source.masks(video), policy).dense()[0], expected)
            alone = split / f"alone{i}/{video}-{expression}"
            write_masks(SelectionCache(selections), source, video, expression, policy, alone)
            assert files(alone) == files(out / video / expression)
        by_pngs = evaluate_pngs("mevis", split / "data", "valid_u", out)
        by_selections = evaluate_selections(selections, caches, policy=options)
        assert by_pngs == by_selections


def test_only_the_tracks_that_are_selected_are_read(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[int]] = []
    runs = TrackSource.runs
    monkeypatch.setattr(TrackSource, "runs", lambda self, video, tracks=None: read.append(tracks) or runs(self, video, tracks))
    parts = np.array([[4, 1, -1], [0, 0, 0], [1, 4, 4]], np.int32)
    scores = np.array([0.9, 0.1, 0.8], np.float32)
    selections = write_all(split / "s.zarr", "a", lambda v, e: Selection(e, scores, np.ones(3, bool), parts=parts))
    merge(selections, [split / "c.zarr"], split / "png")
    assert read == [[1, 4]]


def test_parts_of_other_caches_are_refused(split: Path) -> None:
    parts = np.array([[0, 5, -1]], np.int32)
    one = Selection("0", np.ones(1, np.float32), np.ones(1, bool), parts=parts)
    selections = write_all(split / "s.zarr", "a", lambda v, e: Selection(e, one.scores, one.candidates, parts=parts))
    message = "the selection of expression 0 has the mask of track 5, the caches have 5 tracks; give the same --cache"
    with pytest.raises(InputError, match=message):
        merge(selections, [split / "c.zarr"], split / "png")
    with pytest.raises(InputError, match=message):
        evaluate_selections(selections, [split / "c.zarr"], scope=Scope(videos=["a"]))
    with pytest.raises(InputError, match=message):
        merge_masks(one, RleMasks.empty(5, 3, SIZE), SelectionPolicy(0.5))
    merge(selections, [split / "c.zarr", split / "thin.zarr"], split / "png2")


def test_detections_of_images(tmp_path: Path) -> None:
    """Queries in reverse order, each with its track: mAP and IoU are those of the tracks."""
    sample = SAMPLES["refcoco"](tmp_path / "data")
    write_truth("refcoco", sample.root, sample.shown, tmp_path)
    plain = SelectionCache(tmp_path / "s.zarr")
    writer = CacheWriter(tmp_path / "parts.zarr", plain.card)
    for video in plain.video_ids():
        info = plain.info(video)
        selections = tuple(
            Selection(
                s.expression_id, s.scores[::-1].copy(), s.candidates[::-1].copy(),
                parts=identity(len(s.scores), len(info.frame_names))[::-1].copy(),
            )
            for s in plain.selections(video)
        )  # fmt: skip
        write_selections(writer, SelectionRecord(video, info.frame_names, info.size, selections))
    tables = [evaluate_images(tmp_path / name, [tmp_path / "c.zarr"], root=sample.root) for name in ("s.zarr", "parts.zarr")]
    assert tables[0] == tables[1] and tables[0]["map"] > 0


def test_label_maps_and_submissions(tmp_path: Path) -> None:
    """Ref-DAVIS17: a query that has each object's tracks in turn; the identity submits the bytes of the tracks."""
    cache = davis.write_cache(tmp_path / "c.zarr", davis.write_split(tmp_path / "data"))
    plain = SelectionCache(davis.write_scores(tmp_path / "plain.zarr", davis.right))
    paths = {}
    for name, shift in (("identity", 0), ("turn", 1)):
        writer = CacheWriter(tmp_path / f"{name}.zarr", plain.card)
        for video in plain.video_ids():
            rows = []
            for s in plain.selections(video):
                parts = identity(len(s.scores), davis.FRAMES)
                objects = davis.NAMED[video]
                parts[:objects] = (parts[:objects] + shift * np.arange(davis.FRAMES)) % objects
                rows.append(Selection(s.expression_id, s.scores, s.candidates, parts=parts))
            write_selections(writer, SelectionRecord(video, davis.NAMES, davis.SIZE, tuple(rows)))
        paths[name] = writer.path
    scores = [evaluate_davis(s, [cache])["j"] for s in (tmp_path / "plain.zarr", paths["identity"], paths["turn"])]
    assert scores[0] == scores[1] > scores[2]
    zips = [
        submit_selections(path, [cache], tmp_path / f"{path.stem}.zip", root=tmp_path / "data")
        for path in (tmp_path / "plain.zarr", paths["identity"])
    ]
    contents = [{n: archive.read(n) for n in archive.namelist()} for archive in map(zipfile.ZipFile, zips)]
    assert contents[0] == contents[1] and contents[0]
    answer = SelectionPredictions(paths["turn"], [cache]).predict(Frames("a", davis.NAMES, davis.SIZE), "0", 1)
    tracks = TrackCache(cache).masks("a")
    for t in range(davis.FRAMES):
        assert np.array_equal(answer.read(t), tracks.decode(t % 3, t).astype(bool))
    assert answer.score == pytest.approx(0.6)


def test_the_page_names_the_tracks_of_a_query(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = np.array([[0, 3, -1], [-1, 1, 1], [2, 2, 2]], np.int32)
    scores = np.array([0.9, 0.4, 0.3], np.float32)
    monkeypatch.setitem(chain.EXPRESSIONS, "b", {"0": ["3"]})
    selections = write_all(
        split / "s.zarr", "ab",
        lambda v, e: Selection(e, scores, np.ones(3, bool), parts=np.minimum(parts, 4 if v == "a" else 2)), WEIGHTS,
    )  # fmt: skip
    page = report(write_run(split / "run"), selections, [split / "c.zarr"], split / "page").read_text("utf-8")
    assert 'query 0 (track 0, track 3 from frame 1, no mask from frame 2), score 0.90 <span class="chosen">' in page
    assert "query 1 (no mask, track 1 from frame 1), score 0.40<img" in page and "query 2 (track 2), score 0.30" in page
    # No label is of a query, so none can be missed.
    assert "no candidate track has a mean IoU above" not in page


def test_a_selector_that_follows_tokens_from_training_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's example with every command: where tracks keep their tokens, its queries keep their tracks."""
    shutil.copy(Path(__file__).parents[1] / "examples/follow_selector.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    write_videos(tmp_path / "data/train", dict.fromkeys(("t0", "t1"), (5, True, VIDEO_EXPRESSIONS)))
    rc.extract("mevis", "data", "train", "flow", "c.zarr")
    rc.extract_text("mevis", "data", "train", "hashed", "t.zarr")
    name = "follow_selector:FollowSelector"
    run = rs.train("c.zarr", "t.zarr", selector=name, epochs=1, batch="video", hold_out=0.0, out="run")
    cache = SelectionCache(rs.predict(run, "c.zarr", "t.zarr", "s.zarr"))
    assert not cache.scores_tracks("t0") and list(verify("s.zarr")) == []
    masks = rs.merge("s.zarr", "c.zarr", "png", PolicyOptions(top1=True))
    (tracks,) = TrackSource("c.zarr").caches
    for selection in cache.selections("t0"):
        assert selection.parts is not None and selection.parts.shape == (len(selection.scores), 5)
        best = selection.parts[int(np.argmax(np.where(selection.candidates, selection.scores, -1)))]
        for t, k in enumerate(best):
            written = read_mask_png(masks / "t0" / selection.expression_id / f"{t:05d}.png", VIDEO_SIZE)
            assert np.array_equal(written, tracks.masks("t0").decode(int(k), t).astype(bool))
    by_pngs = evaluate_pngs("mevis", tmp_path / "data", "train", masks)
    assert by_pngs == evaluate_selections(cache.path, ["c.zarr"], root=tmp_path / "data", policy=PolicyOptions(top1=True))
    assert rs.report(run, "s.zarr", "c.zarr", "page").is_file()
    answer = rs.ask("data/train/JPEGImages/t0", "the red square", run, "asked", PolicyOptions(top1=True))
    assert (answer.selected, answer.hint) == (1, None) and answer.tracks == tracks.info("t0").tracks
    assert len(list(answer.masks.glob("*.png"))) == 5 and answer.overlay.is_file()
