"""Queries whose track changes (`Selection.parts`): from a selector to masks, scores, label maps, submissions, a page and `ask`."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import chain
import davis_fixtures as davis
import numpy as np
import pytest
import torch
from chain import EXPRESSIONS, NAMES, SIZE, WEIGHTS, write_cache, write_run, write_split
from odd_videos import SAID
from odd_videos import SIZE as VIDEO_SIZE
from odd_videos import write_split as write_videos
from test_dataset_contract import SAMPLES
from test_evaluate_benchmarks import write_truth
from torch import Tensor, nn

import rvos_cache as rc
import rvos_select as rs
from rvos_cache.contracts.checks import CheckFailed
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.media.mask_png import read_mask_png
from rvos_cache.store import CacheWriter, Card, SelectionCache, SelectionRecord, TrackCache, verify, write_selections
from rvos_cache.types import Selection
from rvos_select.contracts import SelectorCase, write_caches
from rvos_select.contracts.selector_checks import check_no_tracks, check_together, check_track_order
from rvos_select.data.batch import Batch
from rvos_select.data.caches import TrackSource
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.texts import TextSource
from rvos_select.data.video import InferenceVideo
from rvos_select.evaluation import Scope, evaluate_pngs, evaluate_selections
from rvos_select.evaluation.image import evaluate_selections as evaluate_images
from rvos_select.evaluation.ref_davis import evaluate_selections as evaluate_davis
from rvos_select.inference.infer import infer_video
from rvos_select.inference.predict import select
from rvos_select.merging.label_maps import Frames, SelectionPredictions
from rvos_select.merging.merge import merge, merge_masks, write_masks
from rvos_select.merging.policy import PolicyOptions, SelectionPolicy
from rvos_select.reporting import report
from rvos_select.selectors import Scored, Selector, SelectorConfig
from rvos_select.submission import submit_selections

CPU = torch.device("cpu")
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
        made = tuple(make(video, expression) for expression in EXPRESSIONS[video])
        write_selections(writer, SelectionRecord(video, NAMES, SIZE, made))
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
    made: dict[tuple[str, str], Selection] = {}

    def make(video: str, expression: str) -> Selection:
        parts = rng.integers(-1, len(dense[video]), (queries, len(NAMES))).astype(np.int32)
        scores = rng.random(queries).astype(np.float32)
        made[video, expression] = Selection(expression, scores, rng.random(queries) > 0.2, parts=parts)
        return made[video, expression]

    selections = write_all(split / "s.zarr", "ab", make)
    source = TrackSource(caches)
    for i, (options, policy) in enumerate(
        zip(POLICIES[:3], (SelectionPolicy(0.5), SelectionPolicy(0.2), SelectionPolicy(0, True)))
    ):
        out = merge(selections, caches, split / f"png{i}", options)
        for (video, expression), selection in made.items():
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


# Selectors.


class Plain(Selector):
    """Scores tracks."""

    def __init__(self, config: SelectorConfig) -> None:
        super().__init__(config)
        self.layer = nn.Linear(config.token_channels, config.word_channels)

    def forward(self, batch: Batch) -> Tensor:
        frames = batch.frame_mask[:, None, :, None]
        tokens = batch.tokens.masked_fill(~frames, 0).sum(2) / frames.sum(2)
        words = batch.words.masked_fill(~batch.word_mask[..., None], 0).sum(1) / batch.word_mask.sum(1, keepdim=True)
        return (self.layer(tokens) * words[:, None]).sum(-1)

    def parts(self, video: InferenceVideo, batch: Batch) -> Tensor:
        """(B, N, T): the identity."""
        tracks = torch.arange(batch.track_mask.shape[1])[:, None].expand(-1, video.frames)
        return torch.where(batch.track_mask[..., None], tracks, -1)


class Identity(Plain):
    """The same scores, of queries."""

    def infer(self, video: InferenceVideo) -> Iterator[Scored]:
        batch = video.batch()
        yield Scored(batch, self(batch), parts=self.parts(video, batch))


class Pieces(Plain):
    """Each expression has a query for each of its candidates, so fewer in some pieces."""

    def infer(self, video: InferenceVideo) -> Iterator[Scored]:
        for i in reversed(range(video.expressions)):
            batch = video.batch([i])
            yield Scored(batch, self(batch), parts=self.parts(video, batch).int())


class Swapped(Plain):
    """Queries 0 and 1 exchange their tracks in odd frames."""

    def infer(self, video: InferenceVideo) -> Iterator[Scored]:
        batch = video.batch()
        parts = self.parts(video, batch).clone()
        parts[:, :2, 1::2] = parts[:, :2, 1::2].flip(1)
        yield Scored(batch, self(batch), parts=parts)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_caches(tmp_path_factory.mktemp("caches"))


def scored(kind: type[Selector]) -> Selector:
    torch.manual_seed(0)
    return kind(SelectorConfig(token_channels=16, word_channels=64)).eval()


def samples(caches: tuple[Path, Path]) -> list[VideoSample]:
    tracks, texts = TrackSource([caches[0]]), TextSource([caches[1]])
    return [load_video(tracks, texts, video) for video in tracks.video_ids()]


@pytest.mark.parametrize("kind", [Identity, Pieces])
@torch.no_grad()
def test_a_selector_of_queries_selects_what_one_of_tracks_does(caches: tuple[Path, Path], kind: type[Selector]) -> None:
    """Parts are positions in the batch, and tracks of the video in the selection; padding is no candidate."""
    masks = TrackSource([caches[0]])
    for sample in samples(caches):
        plain, parts = (select(scored(k), sample, CPU) for k in (Plain, kind))
        assert len({len(s.scores) for s in parts}) == 1
        for a, b in zip(plain, parts, strict=True):
            assert a.expression_id == b.expression_id and b.parts is not None
            tracks = np.flatnonzero(a.candidates)
            assert np.array_equal(b.parts[b.candidates], identity(len(a.scores), len(sample.tokens[0]))[tracks])
            assert (b.parts[~b.candidates] == -1).all() and not b.scores[~b.candidates].any()
            np.testing.assert_allclose(b.scores[b.candidates], a.scores[tracks], rtol=1e-5)
            for policy in (SelectionPolicy(0.5), SelectionPolicy(0.5, top1=True)):
                first, second = (merge_masks(s, masks.masks(sample.video_id), policy) for s in (a, b))
                assert first == second


def test_videos_without_a_candidate_have_no_query(caches: tuple[Path, Path]) -> None:
    sample = samples(caches)[0]
    empty = sample.__class__(**{**vars(sample), "candidates": torch.zeros_like(sample.candidates)})
    assert all(not s.candidates.any() and s.parts is None for s in select(scored(Identity), empty, CPU))

    class NoQuery(Plain):
        def infer(self, video: InferenceVideo) -> Iterator[Scored]:
            batch = video.batch()
            size = (len(batch), 0)
            yield Scored(batch, torch.zeros(size), parts=torch.zeros(*size, video.frames, dtype=torch.long))

    (first, *_) = select(scored(NoQuery), sample, CPU)
    assert first.parts is not None and first.parts.shape == (0, sample.tokens.shape[1]) and not len(first.scores)


def wrong(change: Callable[[Tensor], Tensor], **attributes: object) -> type[Selector]:
    class Wrong(Plain):
        def infer(self, video: InferenceVideo) -> Iterator[Scored]:
            batch = video.batch()
            yield Scored(batch, self(batch), parts=change(self.parts(video, batch)))

    for name, value in attributes.items():
        setattr(Wrong, name, value)
    return Wrong


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (wrong(lambda p: p[..., 1:]), r"video a: parts torch.int64 \(4, 5, 6\), expected integers \(B, Q, T\) = \(4, 5, 7\)"),
        (wrong(lambda p: p[:, 1:]), r"parts torch.int64 \(4, 4, 7\)"),
        (wrong(lambda p: p.float()), "parts torch.float32"),
        (wrong(lambda p: p > 0), "parts torch.bool"),
        (wrong(lambda p: p + 1), "parts from 0 to 5, expected -1 or a track of the batch below 5"),
        (wrong(lambda p: p - 1), "parts from -2 to 3"),
        (wrong(lambda p: p.clamp(min=4)), "query 0 of expression 0 has track 4 of the batch in frame 0, which is no candidate"),
        (wrong(lambda p: p, draws=True), "gives parts, but draws masks of its own"),
    ],
)
@torch.no_grad()
def test_parts_that_cannot_be(caches: tuple[Path, Path], kind: type[Selector], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(infer_video(scored(kind), samples(caches)[0], CPU))


@torch.no_grad()
def test_all_expressions_of_a_video_have_parts_or_none(caches: tuple[Path, Path]) -> None:
    class Some(Plain):
        def infer(self, video: InferenceVideo) -> Iterator[Scored]:
            for i in range(video.expressions):
                batch = video.batch([i])
                yield Scored(batch, self(batch), parts=self.parts(video, batch) if i else None)

    with pytest.raises(ValueError, match="infer gives parts of some expressions, but not of 0"):
        select(scored(Some), samples(caches)[0], CPU)


def test_validation_scores_the_masks_that_are_merged(caches: tuple[Path, Path], tmp_path: Path) -> None:
    """J&F of the epochs: of the identity that of the tracks; of swapped tracks that of `evaluate`."""
    found = {}
    for kind in (Plain, Identity, Swapped):
        values = {"epochs": 2, "batch": "video", "optim": {"lr": 1e-2}, "precision": "float32"}
        out = rs.train(
            *caches, selector=f"{__name__}:{kind.__name__}", valid_tracks=caches[0], valid_texts=caches[1],
            out=tmp_path / kind.__name__, **values,
        )  # fmt: skip
        found[kind] = [json.loads(line)["valid/jf"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        selections = rs.predict(out, *caches, out / "s.zarr")
        assert list(verify(selections)) == []
        scores = evaluate_selections(selections, [caches[0]])
        assert scores["jf"] == pytest.approx(max(found[kind]), abs=1e-6)
    assert found[Plain] == pytest.approx(found[Identity]) and found[Swapped] != pytest.approx(found[Identity])


def test_the_contract_finds_queries_that_do_not_follow_their_tracks() -> None:
    """The checks compare the score of each track in each frame: swapped positions are not swapped tracks."""
    for name in ("Identity", "Pieces"):
        case = SelectorCase(f"{__name__}:{name}")
        for check in (check_together, check_track_order, check_no_tracks):
            check(case)
    with pytest.raises(CheckFailed, match="the scores of a: differs by"):
        check_track_order(SelectorCase(f"{__name__}:Swapped"))


# Benchmarks.


def test_detections_of_images(tmp_path: Path) -> None:
    """Queries in reverse order, each with its track: mAP and IoU are those of the tracks."""
    sample = SAMPLES["refcoco"](tmp_path / "data")
    write_truth("refcoco", sample.root, sample.shown, tmp_path)
    plain = SelectionCache(tmp_path / "s.zarr")
    writer = CacheWriter(tmp_path / "parts.zarr", plain.card)
    for video in plain.video_ids():
        info = plain.info(video)
        made = tuple(
            Selection(
                s.expression_id, s.scores[::-1].copy(), s.candidates[::-1].copy(),
                parts=identity(len(s.scores), len(info.frame_names))[::-1].copy(),
            )
            for s in plain.selections(video)
        )  # fmt: skip
        write_selections(writer, SelectionRecord(video, info.frame_names, info.size, made))
    tables = [evaluate_images(tmp_path / name, [tmp_path / "c.zarr"], root=sample.root) for name in ("s.zarr", "parts.zarr")]
    assert tables[0] == tables[1] and tables[0]["map"] > 0


def test_label_maps_and_submissions(tmp_path: Path) -> None:
    """Ref-DAVIS17: a query that has each object's tracks in turn; the identity submits the bytes of the tracks."""
    cache = davis.write_cache(tmp_path / "c.zarr", davis.write_split(tmp_path / "data"))
    plain = SelectionCache(davis.write_scores(tmp_path / "plain.zarr", davis.right))
    made = {}
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
        made[name] = writer.path
    scores = [evaluate_davis(s, [cache])["j"] for s in (tmp_path / "plain.zarr", made["identity"], made["turn"])]
    assert scores[0] == scores[1] > scores[2]
    zips = [
        submit_selections(path, [cache], tmp_path / f"{path.stem}.zip", root=tmp_path / "data")
        for path in (tmp_path / "plain.zarr", made["identity"])
    ]
    contents = [{n: archive.read(n) for n in archive.namelist()} for archive in map(zipfile.ZipFile, zips)]
    assert contents[0] == contents[1] and contents[0]
    answer = SelectionPredictions(made["turn"], [cache]).predict(Frames("a", davis.NAMES, davis.SIZE), "0", 1)
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
    write_videos(tmp_path / "data/train", dict.fromkeys(("t0", "t1"), (5, True, SAID)))
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
