"""Clips against the arrays that were written: which frames, whose masks, what is padded, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.store import CacheWriter, Card, TextRecord, TrackRecord, write_text, write_tracks
from rvos_cache.types import Expression, FeatureSpec, GroundTruth, TrackSet, Words
from rvos_select.data.batch import Batch
from rvos_select.data.caches import TrackSource
from rvos_select.data.clips import ClipSampler, ClipSettings, with_visible_rows
from rvos_select.data.collate import collate
from rvos_select.data.epochs import prefetch, steps
from rvos_select.data.features import FrameReader, StoredFeature
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.texts import TextSource

SIZE = (6, 9)
SPECS = (
    FeatureSpec("maps", ("T", "h", "w", 3), by_frame=True),
    FeatureSpec("some_maps", ("R", "h", "w", 3), by_frame=True),
    FeatureSpec("which", ("R",), "int32"),
    FeatureSpec("queries", ("T", 4, 5)),
    FeatureSpec("own", ("N",), "int32"),
    FeatureSpec("seen_at", ("N", "T"), "float32"),
)
REQUIRES = ("frames.maps", "frames.queries", "features.own", "features.seen_at", "overlap", "truth", "presence")
TARGETS = {"0": ("a",), "1": ("a", "b"), "2": (), "3": ("c",)}


def arrays(frames: int, tracks: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    which = np.arange(0, frames, 2, dtype=np.int32)
    maps = rng.normal(size=(frames, 2, 3 + seed, 3)).astype(np.float16)
    return {
        "maps": maps, "some_maps": maps[which], "which": which, "queries": rng.normal(size=(frames, 4, 5)).astype(np.float16),
        "own": rng.permutation(9)[:tracks].astype(np.int32), "seen_at": rng.random((tracks, frames)).astype(np.float32),
    }  # fmt: skip


def truth_of(frames: int) -> GroundTruth:
    """Object a is in the first half, b in the second, c nowhere; the last frame is not annotated."""
    dense = np.zeros((3, frames, *SIZE), bool)
    for t in range(frames):
        dense[int(t >= frames // 2), t, 1:4, t % 5 : t % 5 + 3] = True
    return GroundTruth(("a", "b", "c"), RleMasks.from_dense(dense), np.arange(frames) < frames - 1)


def write(folder: Path, hidden: bool = False) -> tuple[TrackSource, TextSource]:
    """Video v0 of 12 frames and 2 tracks, v1 of 5 frames and 4 tracks with wider maps."""
    card = Card(
        kind="tracks",
        dataset="d",
        split="s",
        producer="vita",
        channels=8,
        label_iou=0.5,
        feature_specs=[{**asdict(s), "dims": list(s.dims)} for s in SPECS],
    )
    tracks, text = CacheWriter(folder / "t.zarr", card), Card(kind="text", dataset="d", split="s", producer="hashed", channels=8)
    words = CacheWriter(folder / "x.zarr", text)
    for i, (frames, n) in enumerate(((12, 2), (5, 4))):
        rng, truth = np.random.default_rng(10 + i), truth_of(frames)
        masks, zeros = RleMasks.from_dense(rng.random((n, frames, *SIZE)) < 0.4), np.zeros(n, np.int32)
        track_set = TrackSet(
            rng.normal(size=(n, frames, 8)).astype(np.float16), rng.random((n, frames)).astype(np.float16), masks, zeros - 1,
            ("query",) * n, zeros, np.zeros((n, 4), np.float32), arrays(frames, n, i),
        )  # fmt: skip
        expressions = tuple(Expression(f"v{i}", e, f"number {e}", None if hidden else named) for e, named in TARGETS.items())
        names = tuple(f"{t:05d}" for t in range(frames))
        answers = (None, None) if hidden else (truth, count_overlap(masks, truth))
        write_tracks(tracks, TrackRecord(f"v{i}", names, SIZE, expressions, track_set, *answers))
        spans = np.array([(0, 0), (0, 6)], np.int32)
        spoken = tuple(Words(rng.normal(size=(2, 8)).astype(np.float16), spans, ("", "NN")) for _ in expressions)
        write_text(words, TextRecord(f"v{i}", expressions, spoken))
    return TrackSource([folder / "t.zarr"]), TextSource([folder / "x.zarr"])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrackSource, TextSource]:
    return write(tmp_path_factory.mktemp("clips"))


def samples(sources: tuple[TrackSource, TextSource], requires: tuple[str, ...] = REQUIRES) -> list[VideoSample]:
    thresholds = {sources[0].caches[0].path: 0.5}
    return [load_video(*sources, v, thresholds=thresholds, requires=requires) for v in ("v0", "v1")]


def test_stored_frames_are_those_written(sources: tuple[TrackSource, TextSource]) -> None:
    expected = arrays(12, 2, 0)
    for name in ("maps", "queries"):
        stored = StoredFeature(sources[0], "v0", name)
        assert len(stored) == 12 and stored.frames.tolist() == list(range(12))
        np.testing.assert_array_equal(stored.lazy({})[3:8].numpy(), expected[name][3:8])
        np.testing.assert_array_equal(stored.select({"T": [1, 1, 7, 11]}).numpy(), expected[name][[1, 1, 7, 11]])
        assert stored.lazy({})[:0].shape == (0, *expected[name].shape[1:])
        assert stored.lazy({})[:].dtype == torch.float16


def test_an_array_read_by_frames_is_indexed_like_a_tensor(sources: tuple[TrackSource, TextSource]) -> None:
    frames = [3, 4, 8, 0, 11]
    stored = StoredFeature(sources[0], "v0", "maps").lazy({"T": frames})
    whole = torch.from_numpy(arrays(12, 2, 0)["maps"][frames])
    mask = torch.tensor([True, False, True, False, False])
    assert stored.shape == whole.shape
    for index in (0, -1, slice(1, 3), slice(None, None, 2), [4, 0], torch.tensor([2, 2]), torch.tensor(3), mask, mask.tolist()):
        torch.testing.assert_close(stored[index], whole[index], rtol=0, atol=0)
    for t, frame in enumerate(stored):
        torch.testing.assert_close(frame, whole[t], rtol=0, atol=0)
    assert t == 4
    for wrong in (5, -6, (0, 1), None, ...):
        with pytest.raises(IndexError):
            stored[wrong]


def test_only_the_chunks_asked_for_are_read(sources: tuple[TrackSource, TextSource], monkeypatch: pytest.MonkeyPatch) -> None:
    stored, asked = StoredFeature(sources[0], "v0", "maps"), []
    read = TrackSource.feature
    monkeypatch.setattr(TrackSource, "feature", lambda self, v, n, frames=None: asked.append(frames) or read(self, v, n, frames))
    stored.select({"T": [2, 2, 9]})
    assert asked == [slice(2, 3), slice(9, 10)]


def test_a_feature_of_some_frames_says_which(sources: tuple[TrackSource, TextSource]) -> None:
    stored = StoredFeature(sources[0], "v0", "some_maps")
    assert stored.frames.tolist() == [0, 2, 4, 6, 8, 10] and len(stored) == 12
    np.testing.assert_array_equal(stored.select({"T": [4, 10]}).numpy(), arrays(12, 2, 0)["maps"][[4, 10]])
    with pytest.raises(InputError, match="6 of 12 frames, not of frame 1; .*profile") as fault:
        stored.lazy({})[:]
    assert "\n" not in str(fault.value)
    with pytest.raises(InputError, match=r"'own', \(N\), has no axis of frames, .* read it as features.own"):
        StoredFeature(sources[0], "v0", "own")
    with pytest.raises(InputError, match=r"no cache holds the feature 'f_mask' \(there are: maps, some_maps"):
        StoredFeature(sources[0], "v0", "f_mask")


@pytest.mark.parametrize("within", [0, 2, 10])
def test_clips_are_near_a_frame_that_shows_the_object(sources: tuple[TrackSource, TextSource], within: int) -> None:
    v0, v1 = samples(sources)
    clips, drawn = ClipSampler(ClipSettings(frames=4, within=within), torch.Generator().manual_seed(0)), set()
    for _ in range(200):
        chosen = clips.sample_frames(v0, 0)
        drawn |= set(chosen)
        assert chosen == sorted(chosen) and len(chosen) == 4
        # Around frame 0 there are three frames, too few.
        assert len(set(chosen)) == 4 or (within == 2 and set(chosen) <= {0, 1, 2})
        assert set(chosen) & set(range(6))
        # Two frames on each side of the first one drawn.
        assert within != 2 or any(max(abs(t - middle) for t in chosen) <= 2 for middle in chosen if middle < 6)
    # Frame 11 has no annotation; object a leaves after frame 5, and its clips reach as far as they may.
    assert drawn == set(range(8 if within == 2 else 11))
    short = [clips.sample_frames(v1, 0) for _ in range(200)]
    assert {t for chosen in short for t in chosen} == {0, 1, 2, 3}


def test_too_few_frames_are_taken_more_than_once(sources: tuple[TrackSource, TextSource]) -> None:
    _, v1 = samples(sources)
    clips = ClipSampler(ClipSettings(frames=7), torch.Generator().manual_seed(0))
    for _ in range(20):
        chosen = clips.sample_frames(v1, 2)
        assert len(chosen) == 7 and set(chosen) <= {0, 1, 2, 3}


def test_a_clip_has_a_neighbour_on_each_side_and_others_outside(sources: tuple[TrackSource, TextSource]) -> None:
    """Expression 1 is visible in every frame that can be sampled, 0 to 10."""
    v0, _ = samples(sources)
    clips = ClipSampler(ClipSettings(frames=4, within=0, neighbours=3), torch.Generator().manual_seed(0))
    before_by, behind_by, others, again = set(), set(), set(), 0
    for _ in range(500):
        chosen = clips.sample_frames(v0, 1)
        assert chosen == sorted(chosen) and len(chosen) == 4
        fits = []
        for i, other in enumerate(chosen):
            before, first, behind = chosen[:i] + chosen[i + 1 :]
            beside = first - before in (1, 2, 3) or first == before == 0, behind - first in (1, 2, 3) or behind == first == 10
            # The released code may take the one behind twice.
            if all(beside) and (other < before or other >= behind):
                fits.append((first - before, behind - first, other, other == behind))
        assert fits, chosen
        if len(set(fits)) == 1:
            before_by.add(fits[0][0])
            behind_by.add(fits[0][1])
            others.add(fits[0][2])
            again += fits[0][3]
    assert before_by == behind_by == {0, 1, 2, 3} and others == set(range(11)) and again


def test_neighbours_by_themselves(sources: tuple[TrackSource, TextSource]) -> None:
    """Three frames: the first one sampled between its two neighbours, at the borders twice."""
    v0, _ = samples(sources)
    clips = ClipSampler(ClipSettings(frames=3, within=0, neighbours=1), torch.Generator().manual_seed(0))
    drawn = {tuple(clips.sample_frames(v0, 1)) for _ in range(300)}
    assert drawn == {(max(0, t - 1), t, min(10, t + 1)) for t in range(11)}
    still = ClipSampler(ClipSettings(frames=1, neighbours=3), torch.Generator().manual_seed(0))
    assert {tuple(still.sample_frames(v0, 1)) for _ in range(100)} == {(t,) for t in range(11)}
    with pytest.raises(ValueError, match="frames=3 or more"):
        ClipSettings(frames=2, neighbours=3)


def test_neighbours_are_frames_that_can_be_sampled(sources: tuple[TrackSource, TextSource]) -> None:
    v0, _ = samples(sources, ("frames.some_maps", "overlap", "truth"))
    clips = ClipSampler(ClipSettings(frames=3, within=0, neighbours=1), torch.Generator().manual_seed(0))
    drawn = {tuple(clips.sample_frames(v0, 1)) for _ in range(200)}
    assert drawn == {(max(0, t - 2), t, min(10, t + 2)) for t in range(0, 11, 2)}


@pytest.mark.parametrize("frames", [6, 7, 8, 12])
def test_a_short_video_gives_frames_more_than_once(sources: tuple[TrackSource, TextSource], frames: int) -> None:
    """Four frames; of more than three beside the neighbours some are taken again, and then each at least once."""
    _, v1 = samples(sources)
    clips = ClipSampler(ClipSettings(frames=frames, within=0, neighbours=3), torch.Generator().manual_seed(0))
    for _ in range(50):
        chosen = clips.sample_frames(v1, 2)
        assert len(chosen) == frames and set(chosen) <= {0, 1, 2, 3} and chosen == sorted(chosen)
        assert frames < 7 or set(chosen) == {0, 1, 2, 3}


def test_clips_run_backwards_as_often_as_asked(sources: tuple[TrackSource, TextSource]) -> None:
    v0, v1 = samples(sources)
    settings = ClipSettings(frames=4, within=0, neighbours=3, reverse=0.3)
    clips = ClipSampler(settings, torch.Generator().manual_seed(0), REQUIRES)
    drawn = [clips.sample_frames(v0, 1) for _ in range(1000)]
    backwards = [chosen == sorted(chosen, reverse=True) for chosen in drawn if len(set(chosen)) > 1]
    assert all(chosen in (sorted(chosen), sorted(chosen, reverse=True)) for chosen in drawn)
    assert 0.25 < sum(backwards) / len(backwards) < 0.35
    # Every array of the batch runs backwards.
    one, other = (clips.make([(v0, 1), (v1, 0)], frames) for frames in ([[1, 4, 9], [0, 1, 3]], [[9, 4, 1], [3, 1, 0]]))
    np.testing.assert_array_equal(one.tokens, other.tokens.flip(2))
    np.testing.assert_array_equal(one.frames["maps"][1], other.frames["maps"][1].flip(0))
    np.testing.assert_array_equal(one.features["seen_at"], other.features["seen_at"].flip(2))
    np.testing.assert_array_equal(one.truth[0], other.truth[0].flip(1))
    np.testing.assert_array_equal(one.overlap[0].inter, other.overlap[0].inter[:, :, ::-1])
    assert other.frame_index.tolist() == [[9, 4, 1], [3, 1, 0]]


@pytest.mark.parametrize("neighbours", [0, 1])
def test_clips_lie_anywhere_as_often_as_asked(sources: tuple[TrackSource, TextSource], neighbours: int) -> None:
    """Expression 0 is visible in frames 0 to 5 of 11; within=1 alone gives at most three frames in a row."""
    v0, _ = samples(sources)

    def spreads(anywhere: float, within: int = 1) -> list[int]:
        settings = ClipSettings(frames=3 + neighbours, within=within, anywhere=anywhere, neighbours=neighbours)
        clips = ClipSampler(settings, torch.Generator().manual_seed(0))
        sampled = [clips.sample_frames(v0, 0) for _ in range(2000)]
        assert all(chosen == sorted(chosen) and set(chosen) & set(range(6)) for chosen in sampled)
        return [chosen[-1] - chosen[0] for chosen in sampled]

    assert max(spreads(0.0)) == 2
    whole = sum(spread > 2 for spread in spreads(0.0, within=0)) / 2000
    for anywhere in (0.5, 1.0):
        wide = [spread for spread in spreads(anywhere) if spread > 2]
        assert len(wide) / 2000 == pytest.approx(anywhere * whole, abs=0.04) and max(wide) == 10


@pytest.mark.parametrize(("frames", "video"), [(4, 0), (7, 1)])
def test_without_the_options_no_random_number_is_drawn_for_them(
    sources: tuple[TrackSource, TextSource], frames: int, video: int
) -> None:
    """So that the clips of runs with other selectors stay what they are: one frame, then the others, and nothing else."""
    sample, generator = samples(sources)[video], torch.Generator().manual_seed(3)
    chosen = ClipSampler(ClipSettings(frames=frames), generator).sample_frames(sample, 2)
    expected = torch.Generator().manual_seed(3)
    visible = sample.visible_frames(2).tolist()
    first = visible.pop(int(torch.randint(len(visible), (1,), generator=expected)))
    count = frames - 1
    if len(visible) >= count:
        others = [visible[i] for i in torch.randperm(len(visible), generator=expected)[:count]]
    else:
        others = [[*visible, first][i] for i in torch.randint(len(visible) + 1, (count,), generator=expected)]
    assert chosen == sorted([first, *others])
    assert torch.equal(generator.get_state(), expected.get_state())


def test_frames_that_an_array_lacks_are_not_drawn(sources: tuple[TrackSource, TextSource]) -> None:
    v0, _ = samples(sources, ("frames.some_maps", "overlap", "truth"))
    clips = ClipSampler(ClipSettings(frames=3), torch.Generator().manual_seed(0))
    assert {t for _ in range(100) for t in clips.sample_frames(v0, 1)} == {0, 2, 4, 6, 8, 10}
    x = clips([(v0, 0), (v0, 1)])
    assert x.frames["some_maps"][0].shape == (3, 2, 3, 3)


def test_an_expression_that_is_never_seen_is_left_out_and_said(sources: tuple[TrackSource, TextSource]) -> None:
    videos = samples(sources)
    with pytest.warns(UserWarning, match="2 expressions have no object visible .* first v0/3"):
        kept = with_visible_rows(videos)
    assert [[e.expression_id for e in s.expressions] for s in kept] == [["0", "1", "2"]] * 2
    assert [s.target.shape for s in kept] == [(3, 2), (3, 4)]
    assert kept[0].objects == ((0,), (0, 1), ())
    assert kept[0].visible_frames(2).tolist() == list(range(11))
    with pytest.raises(ValueError, match="v0/3"):
        ClipSampler(ClipSettings(), torch.Generator()).sample_frames(videos[0], 3)


def test_a_batch_of_clips_holds_what_was_written(sources: tuple[TrackSource, TextSource]) -> None:
    v0, v1 = samples(sources)
    frames = [[1, 4, 9], [0, 0, 3]]
    x = collate([(v0, 1), (v1, 0)], REQUIRES, frames=frames)
    assert x.tokens.shape == (2, 4, 3, 8) and x.frame_mask.all() and x.sizes == (SIZE, SIZE)
    assert x.track_mask.tolist() == [[True, True, False, False], [True] * 4]
    for i, (n, t, seed) in enumerate(((2, 12, 0), (4, 5, 1))):
        expected, rng = arrays(t, n, seed), np.random.default_rng(10 + seed)
        masks = RleMasks.from_dense(rng.random((n, t, *SIZE)) < 0.4)
        np.testing.assert_array_equal(x.tokens[i, :n], rng.normal(size=(n, t, 8)).astype(np.float16)[:, frames[i]])
        np.testing.assert_array_equal(x.presence[i, :n], rng.random((n, t)).astype(np.float16)[:, frames[i]])
        for name in ("maps", "queries"):
            np.testing.assert_array_equal(x.frames[name][i], expected[name][frames[i]])
        np.testing.assert_array_equal(x.features["own"][i, :n], expected["own"])
        np.testing.assert_array_equal(x.features["seen_at"][i, :n], expected["seen_at"][:, frames[i]])
        named = [0, 1] if i == 0 else [0]
        truth = truth_of(t)
        np.testing.assert_array_equal(x.truth[i], truth.masks.dense(named)[:, frames[i]])
        counts = count_overlap(masks, GroundTruth(truth.object_ids, truth.masks, np.ones(t, bool)))
        np.testing.assert_array_equal(x.overlap[i].inter, counts.inter[:, named][:, :, frames[i]])
        np.testing.assert_array_equal(x.overlap[i].gt_area, counts.gt_area[named][:, frames[i]])
    assert x.tokens[0, 2:].abs().sum() == x.features["own"][0, 2:].sum() == 0
    whole = collate([(v0, 1), (v1, 0)], ("overlap.video",), frames=frames).overlap
    assert [counts.inter.shape[2] for counts in whole] == [12, 5]
    np.testing.assert_array_equal(whole[0].inter, v0.overlap.inter[:, [0, 1]])


def test_a_whole_video_reads_its_frames_when_asked(sources: tuple[TrackSource, TextSource]) -> None:
    v0, _ = samples(sources)
    x = collate([(v0, 1), (v0, 2)], REQUIRES)
    assert isinstance(x.frames["maps"][0], FrameReader)
    assert [masks.shape for masks in x.truth] == [(2, 12, *SIZE), (0, 12, *SIZE)]
    assert x.overlap[1].inter.shape == (2, 0, 12)
    assert isinstance(x.to(torch.device("cpu")).frames["maps"][0], FrameReader)
    with pytest.raises(ValueError, match="frames"):
        replace(x, frames={"maps": (torch.zeros(3, 1),)})


def test_the_same_seed_draws_the_same_clips(sources: tuple[TrackSource, TextSource]) -> None:
    with pytest.warns(UserWarning, match="left out"):
        videos = with_visible_rows(samples(sources))

    def epoch(seed: int) -> list[Batch]:
        order = torch.Generator().manual_seed(seed)
        clips = ClipSampler(ClipSettings(frames=3), order, REQUIRES)
        return [clips(step.rows) for step in steps(videos, "single", 4, order)]

    one, two, other = epoch(1), epoch(1), epoch(2)
    assert [len(x.words) for x in one] == [4, 2]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(one, two))
    assert not all(a.tokens.shape == b.tokens.shape and torch.equal(a.tokens, b.tokens) for a, b in zip(one, other))


def test_hidden_answers_make_no_clips(tmp_path: Path) -> None:
    tracks, words = write(tmp_path, hidden=True)
    with pytest.raises(InputError, match="hides"):
        load_video(tracks, words, "v0", thresholds={tracks.caches[0].path: 0.5}, requires=REQUIRES)
    read = load_video(tracks, words, "v0", requires=REQUIRES)
    assert read.truth is None and read.overlap is None
    batch = collate([(read, 0)], ("presence",), frames=[[0]])
    assert batch.truth is None and batch.overlap is None and batch.target is None


def test_items_are_prefetched_in_order_and_faults_come_through() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise InputError("frame 7 is damaged")

    iterator = prefetch(items())
    assert [next(iterator) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="frame 7"):
        next(iterator)
    assert list(prefetch(iter(range(5)))) == list(range(5))


def test_a_feature_of_tracks_does_not_fit_joined_caches(tmp_path: Path, sources: tuple[TrackSource, TextSource]) -> None:
    """Here another cache of the same split, whose tracker writes no features, brings tracks of its own."""
    card = sources[0].card.model_copy(update={"producer": "flow", "feature_specs": []})
    writer = CacheWriter(tmp_path / "flow.zarr", card)
    for record in map(sources[0].caches[0].read, ("v0", "v1")):
        write_tracks(writer, replace(record, tracks=replace(record.tracks, features={})))
    joined = TrackSource([sources[0].caches[0].path, tmp_path / "flow.zarr"])
    with pytest.raises(InputError, match=r"'own' has an axis of tracks, .*flow.zarr does not hold it; .* this cache alone"):
        load_video(joined, sources[1], "v0", requires=("features.own",))
    assert load_video(joined, sources[1], "v0", requires=("frames.maps",)).frames["maps"].select({"T": [0, 1]}).shape[0] == 2
