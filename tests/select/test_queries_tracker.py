"""Trackers with tracks of each expression: cached, labelled, joined, and read by selectors, of whose features each reads its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_videos import EXPRESSIONS, write_split
from queries_tracker import CHANNELS, QUERIES, TEXT, RawOrder, length, texts_of, vectors

import rvos_cache as rc
import rvos_select as rs
from rvos_cache.contracts import run_tracker_checks
from rvos_cache.errors import InputError
from rvos_cache.store import TrackCache, content_digest, read_card, verify
from rvos_select.contracts import SelectorCase, run_selector_checks
from rvos_select.data.batch import Batch
from rvos_select.data.caches import TrackSource
from rvos_select.data.collate import collate
from rvos_select.data.features import StoredFeature
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.texts import TextSource
from rvos_select.inference.predict import select
from rvos_select.merging.merge import merge_masks
from rvos_select.merging.policy import SelectionPolicy
from rvos_select.selectors import SelectorConfig

TRACKER, SELECTOR = "queries_tracker:QueriesTracker", "queries_tracker:QueriesSelector"
REQUIRES = ("features.reference", "features.raw", "features.words", "frames.text")
VIDEOS = {
    "t0": (5, True, EXPRESSIONS),
    "t1": (3, True, {"0": EXPRESSIONS["1"]}),
    "t2": (4, True, {k: EXPRESSIONS[k] for k in ("2", "0")}),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, c.zarr with 15 tracks of each expression, flow.zarr, t.zarr."""
    out = tmp_path_factory.mktemp("work")
    write_split(out / "data/train", VIDEOS)
    for tracker, name in ((TRACKER, "c"), ("flow", "flow")):
        assert not rc.extract("mevis", out / "data", "train", tracker, out / f"{name}.zarr").failed
    rc.extract_text("mevis", out / "data", "train", "hashed", out / "t.zarr")
    return out


@pytest.mark.slow
def test_the_tracker_passes_its_checks() -> None:
    results = list(run_tracker_checks(TRACKER, {}))
    assert [f"{r.title}: {r.message}" for r in results if r.status == "FAILED"] == [] and len(results) == 12


def test_shards_and_resumed_runs_are_one_cache(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    done = [rc.extract("mevis", work / "data", "train", TRACKER, out, shard=f"{i}/2").done for i in (1, 2)]
    assert sorted(v for part in done for v in part) == sorted(VIDEOS) and all(done)
    assert rc.extract("mevis", work / "data", "train", TRACKER, out).done == []
    assert content_digest(out) == content_digest(work / "c.zarr") and list(verify(out)) == []
    cache = TrackCache(out)
    for video, (frames, _, sentences) in VIDEOS.items():
        info, words = cache.info(video), sum(length(text) for text, _ in sentences.values())
        assert info.tracks == QUERIES * len(sentences)
        assert np.array_equal(info.prompt, np.repeat(np.arange(len(sentences)), QUERIES))
        shapes = {name: cache.feature(video, name).shape for name in ("reference", "raw", "words", "text")}
        n = info.tracks
        assert shapes == {"reference": (n, frames, 4), "raw": (n, frames), "words": (n, 2), "text": (frames, words, TEXT)}


def test_a_plan_scales_what_it_timed(work: Path) -> None:
    plan = rc.plan("mevis", work / "data", "train", TRACKER, sample=2)
    assert plan.failed == {} and plan.videos == 3 and plan.frames == 12 and plan.size > 0 and len(plan.timed) == 2


def test_other_sentences_need_other_tracks(work: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"c\.zarr: its tracks depend on the sentences, so they cannot be labelled again"):
        rc.relabel(work / "c.zarr", tmp_path / "again.zarr")
    write_split(tmp_path / "data/train", {**VIDEOS, "t1": (3, True, {"0": ("a red thing", [0])})})
    with pytest.raises(InputError, match="expressions_digest"):
        rc.extract("mevis", tmp_path / "data", "train", TRACKER, work / "c.zarr")


def load(work: Path, video: str, requires: tuple[str, ...] = REQUIRES) -> VideoSample:
    return load_video(TrackSource([work / "c.zarr"]), TextSource([work / "t.zarr"]), video, requires=requires)


def check_words(batch: Batch, frames: list[list[int]]) -> None:
    """frames: of each expression's clip."""
    for sentence, own, words in zip(batch.sentences, frames, texts_of(batch), strict=True):
        assert np.array_equal(words[: len(own)].numpy(), np.stack([vectors(sentence, t) for t in own]))


def test_an_expression_reads_its_own_words(work: Path) -> None:
    """Alone, with the others of its video, with those of other videos, and in clips."""
    samples = {video: load(work, video) for video in VIDEOS}
    for video, sample in samples.items():
        whole = list(range(VIDEOS[video][0]))
        count = len(sample.expressions)
        check_words(collate([(sample, row) for row in range(count)], REQUIRES), [whole] * count)
        for row in range(count):
            alone = collate([(sample, row)], REQUIRES)
            assert alone.features["words"].shape == (1, QUERIES, 2) and alone.tokens.shape[1] == QUERIES
            check_words(alone, [whole])
            check_words(collate([(sample, row)], REQUIRES, frames=[[2, 0]]), [[2, 0]])
    rows = [(samples["t0"], 1), (samples["t1"], 0), (samples["t2"], 0)]
    check_words(collate(rows, REQUIRES), [list(range(n)) for n in (5, 3, 4)])
    check_words(collate(rows, REQUIRES, frames=[[4, 0], [1, 1], [0, 2]]), [[4, 0], [1, 1], [0, 2]])


def test_only_the_frames_that_are_asked_for_are_read(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = StoredFeature._read
    monkeypatch.setattr(StoredFeature, "_read", lambda self, frames: read.extend(frames) or original(self, frames))
    sample = load(work, "t0")
    batch = collate([(sample, 2), (sample, 1)], REQUIRES)
    assert read == []
    shapes = [tuple(text.shape) for text in texts_of(batch, slice(2, 4))]
    assert shapes == [(2, length(sentence), TEXT) for sentence in batch.sentences] and read == [2, 3]


def test_selectors_of_tracks_train_on_them(work: Path, tmp_path: Path) -> None:
    """mean-cosine, SOLA and one that reads the features; candidates are the expression's own 15."""
    cache, text = work / "c.zarr", work / "t.zarr"
    small = {"sola": {"width": 16, "layers": 1, "heads": 2, "negatives": 2}}
    oracle = rs.oracle(cache)
    assert 0 < oracle["jf"] <= 1
    for name, batch in (("mean-cosine", "video"), ("sola", "single"), (SELECTOR, "clip")):
        values = {"epochs": 1, "batch": batch, "clip": {"frames": 2}, "batch_size": 2}
        out = tmp_path / f"{name.partition(':')[2] or name}-{batch}"
        run = rs.train(cache, text, selector=name, config=small.get(name, {}), hold_out=0.34, out=out, **values)
        assert "valid/jf" in json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        selections = rc.SelectionCache(rs.predict(run, cache, text, out / "s.zarr"))
        for e, selection in enumerate(selections.selections("t0")):
            assert np.array_equal(np.flatnonzero(selection.candidates), np.arange(QUERIES * e, QUERIES * (e + 1)))
        assert rs.evaluate(selections.path, cache)["expressions"].keys() == oracle["expressions"].keys()


def test_queries_of_frames_are_parts_of_tracks(work: Path) -> None:
    """The order of the queries before tracking, which the tracks keep: each query of an expression is one of its 15 tracks."""
    torch.manual_seed(0)
    selector = RawOrder(SelectorConfig(token_channels=CHANNELS, word_channels=1)).eval()
    tracks = TrackCache(work / "c.zarr")
    for video, (frames, *_) in VIDEOS.items():
        raw, masks = tracks.feature(video, "raw"), tracks.masks(video)
        with torch.no_grad():
            selections = select(selector, load(work, video), torch.device("cpu"))
        for e, selection in enumerate(selections):
            assert selection.parts is not None and selection.parts.shape == (QUERIES, frames) and selection.candidates.all()
            assert (selection.parts // QUERIES == e).all()
            assert (raw[selection.parts, np.arange(frames)] == np.arange(QUERIES)[:, None]).all()
            # All queries together are all tracks of the expression, in whatever order they follow each other.
            union = merge_masks(selection, masks, SelectionPolicy(0.0))
            assert union == masks.union(range(QUERIES * e, QUERIES * (e + 1)))


@pytest.mark.slow
def test_the_selector_passes_its_checks(work: Path) -> None:
    case = SelectorCase(SELECTOR, tracks=work / "c.zarr", texts=work / "t.zarr")
    assert [f"{r.title}: {r.message}" for r in run_selector_checks(case) if r.status == "FAILED"] == []


def test_with_the_tracks_of_another_tracker(work: Path, tmp_path: Path) -> None:
    """Tracks of a video are candidates of each expression beside its own 15; features of tracks must be those of all."""
    caches = [work / "c.zarr", work / "flow.zarr"]
    (channels,) = {read_card(path).channels for path in caches[:1]}
    assert channels != read_card(caches[1]).channels
    with pytest.raises(InputError, match="caches that are read together need the same"):
        TrackSource(caches)
    assert rc.extract("mevis", work / "data", "train", f"{__name__}:Boxes", tmp_path / "boxes.zarr").failed == {}
    caches[1] = tmp_path / "boxes.zarr"
    source, texts = TrackSource(caches), TextSource([work / "t.zarr"])
    sample = load_video(source, texts, "t0")
    assert sample.candidates.sum(1).tolist() == [QUERIES + 2] * 3
    assert torch.equal(sample.candidates[1].nonzero()[:, 0], torch.tensor([*range(QUERIES, 2 * QUERIES), 45, 46]))
    for requires in REQUIRES[:3]:
        with pytest.raises(
            InputError, match=f"{requires.partition('.')[2]}' has an axis of tracks, .*boxes.zarr does not hold it"
        ):
            load_video(source, texts, "t0", requires=(requires,))
    assert load_video(source, texts, "t0", requires=("frames.text",)).frames["text"].length == 5
    assert rs.oracle(caches)["jf"] >= rs.oracle(caches[:1])["jf"]


class Boxes(rc.Tracker):
    """Two tracks of every video: its left and its right half."""

    channels = 16

    def track(self, video: rc.Video, expressions: object) -> rc.TrackSet:
        masks = np.zeros((2, len(video), *video.size), bool)
        masks[0, ..., : video.size[1] // 2] = masks[1, ..., video.size[1] // 2 :] = True
        return rc.TrackSet.from_masks(np.zeros((2, len(video), 16)), masks)
