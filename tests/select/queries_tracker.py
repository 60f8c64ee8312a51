"""A tracker that reads the sentences, with 15 tracks of each, and a selector that reads of its features what an expression needs."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from rvos_cache.trackers import Tracker
from rvos_cache.types import Expression, FeatureSpec, TrackSet, Video
from rvos_select.data.batch import Batch
from rvos_select.data.video import InferenceVideo
from rvos_select.selectors import Scored, Selector, SelectorConfig

QUERIES, CHANNELS, TEXT = 15, 16, 256


def length(sentence: str) -> int:
    """Words of a sentence, with one at its start and one at its end."""
    return len(sentence.split()) + 2


def vectors(sentence: str, t: int) -> np.ndarray:
    """The words of a sentence in frame t, float16 (length, TEXT)."""
    rng = np.random.default_rng([zlib.crc32(sentence.encode()), t])
    return rng.normal(size=(length(sentence), TEXT)).astype(np.float16)


class QueriesTracker(Tracker):
    """Boxes at random places; W is all words of the video's expressions in a row."""

    reads_expressions = True
    channels = CHANNELS
    label_iou = 0.3
    feature_specs: ClassVar[tuple[FeatureSpec, ...]] = (  # type: ignore[misc]
        FeatureSpec("reference", ("N", "T", 4), "float32"),
        FeatureSpec("raw", ("N", "T"), "int16"),
        FeatureSpec("words", ("N", 2), "int32"),
        FeatureSpec("text", ("T", "W", TEXT), "float16", by_frame=True),
    )

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        t, (height, width), n = len(video), video.size, QUERIES * len(expressions)
        tokens, masks = np.zeros((n, t, CHANNELS), np.float16), np.zeros((n, t, height, width), bool)
        reference, raw = np.zeros((n, t, 4), np.float32), np.zeros((n, t), np.int16)
        for e, expression in enumerate(expressions):
            rng, own = np.random.default_rng(zlib.crc32(expression.text.encode())), slice(QUERIES * e, QUERIES * (e + 1))
            tokens[own] = rng.normal(size=(QUERIES, t, CHANNELS))
            reference[own] = rng.random((QUERIES, t, 4))
            raw[own] = np.stack([rng.permutation(QUERIES) for _ in range(t)], 1)
            for k in range(own.start, own.stop):
                y, x = rng.integers(0, height), rng.integers(0, width)
                masks[k, :, y : y + height // 3 + 1, x : x + width // 3 + 1] = True
        stops = np.cumsum([0, *(length(e.text) for e in expressions)]).astype(np.int32)
        return TrackSet.from_masks(
            tokens, masks, prompt=np.repeat(np.arange(len(expressions)), QUERIES), origin="query",
            features={
                "reference": reference, "raw": raw, "text": self.text(t, expressions),
                "words": np.repeat(np.stack([stops[:-1], stops[1:]], 1), QUERIES, 0),
            },
        )  # fmt: skip

    def text(self, frames: int, expressions: Sequence[Expression]) -> Iterator[np.ndarray]:
        """(T, W, TEXT), frame by frame."""
        empty = np.zeros((0, TEXT), np.float16)
        return (np.concatenate([empty, *(vectors(e.text, t) for e in expressions)]) for t in range(frames))


def texts_of(batch: Batch, frames: slice = slice(None)) -> list[Tensor]:
    """The words of each expression of a batch in some frames, (t, L, TEXT): the range of its tracks of all words of the video."""
    # Each video's frames are read once, whatever the number of its expressions.
    whole = [array[frames] for array in batch.frames["text"]]
    texts = []
    for i, candidates in enumerate(batch.track_mask):
        video = 0 if len(whole) == 1 else i
        own = batch.features["words"][video][candidates]
        start, stop = own[0].tolist() if len(own) else (0, 0)
        texts.append(whole[video][:, start:stop])
    return texts


class QueriesSelector(Selector):
    """Tokens, boxes and places among the queries, against the words of each frame."""

    requires = ("features.reference", "features.raw", "features.words", "frames.text")

    def __init__(self, config: SelectorConfig) -> None:
        super().__init__(config)
        self.layer = nn.Linear(config.token_channels + 4 + 1, TEXT)

    def forward(self, batch: Batch) -> Tensor:
        raw = batch.features["raw"][..., None].float() / QUERIES
        tokens = self.layer(torch.cat([batch.tokens, batch.features["reference"], raw], -1))
        rows = []
        for i, text in enumerate(texts_of(batch)):
            video = 0 if len(batch.tokens) == 1 else i
            words, real = text.float(), batch.frame_mask[video]
            if not words.shape[1]:
                rows.append(tokens.new_zeros(tokens.shape[1]))
                continue
            logits = torch.einsum("ntd,tld->ntl", tokens[video], words).amax(-1) / TEXT
            rows.append((logits * real).sum(1) / real.sum())
        return torch.stack(rows)


class RawOrder(QueriesSelector):
    """Query q has in each frame the mask of the track that was q-th there before tracking: the tracks are undone."""

    def infer(self, video: InferenceVideo) -> Iterator[Scored]:
        batch = video.batch()
        logits, raw = self(batch), batch.features["raw"][0].long()
        rows, parts = [], []
        for i, candidates in enumerate(batch.track_mask):
            own = candidates.nonzero()[:, 0]
            parts.append(own[raw[own].argsort(0)])
            rows.append(logits[i].expand(video.frames, -1).gather(1, parts[-1].T).mean(0))
        yield Scored(batch, torch.stack(rows), parts=torch.stack(parts))
