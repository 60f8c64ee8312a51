"""Selectors whose queries have parts: what `infer` may give, what it becomes in a selection, in validation and in the contract."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_parts import identity
from torch import Tensor, nn

import rvos_select as rs
from rvos_cache.contracts.checks import CheckFailed
from rvos_cache.store import verify
from rvos_select.contracts import SelectorCase, write_caches
from rvos_select.contracts.selector_checks import check_no_tracks, check_together, check_track_order
from rvos_select.data.batch import Batch
from rvos_select.data.caches import TrackSource
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.texts import TextSource
from rvos_select.data.video import InferenceVideo
from rvos_select.evaluation import evaluate_selections
from rvos_select.inference.infer import infer_video
from rvos_select.inference.predict import select
from rvos_select.merging.merge import merge_masks
from rvos_select.merging.policy import SelectionPolicy
from rvos_select.selectors import Scored, Selector, SelectorConfig

CPU = torch.device("cpu")


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
        tracks = torch.arange(batch.track_mask.shape[1], device=batch.track_mask.device)[:, None].expand(-1, video.frames)
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
    valid_jf = {}
    for kind in (Plain, Identity, Swapped):
        values = {"epochs": 2, "batch": "video", "optim": {"lr": 1e-2}, "precision": "float32"}
        out = rs.train(
            *caches, selector=f"{__name__}:{kind.__name__}", valid_tracks=caches[0], valid_texts=caches[1],
            out=tmp_path / kind.__name__, **values,
        )  # fmt: skip
        valid_jf[kind] = [json.loads(line)["valid/jf"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        selections = rs.predict(out, *caches, out / "s.zarr")
        assert list(verify(selections)) == []
        scores = evaluate_selections(selections, [caches[0]])
        assert scores["jf"] == pytest.approx(max(valid_jf[kind]), abs=1e-6)
    assert valid_jf[Plain] == pytest.approx(valid_jf[Identity]) and valid_jf[Swapped] != pytest.approx(valid_jf[Identity])


def test_the_contract_finds_queries_that_do_not_follow_their_tracks() -> None:
    """The checks compare the score of each track in each frame: swapped positions are not swapped tracks."""
    for name in ("Identity", "Pieces"):
        case = SelectorCase(f"{__name__}:{name}")
        for check in (check_together, check_track_order, check_no_tracks):
            check(case)
    with pytest.raises(CheckFailed, match="the scores of a: differs by"):
        check_track_order(SelectorCase(f"{__name__}:Swapped"))
