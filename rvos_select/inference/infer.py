"""A selector applied to one video: the scores of its expressions, and the masks of a selector that predicts them.

`predict`, validation during training and `ask` all go through here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.mask_encoding import Encoding
from rvos_cache.masks import RleMasks
from rvos_select.data.batch import Batch
from rvos_select.data.samples import VideoSample
from rvos_select.data.video import InferenceVideo
from rvos_select.selectors import Scored, Selector

INTEGERS = (torch.int16, torch.int32, torch.int64)
"""Dtypes of `Scored.parts`."""


@dataclass(frozen=True)
class ScoredRows:
    """Scores of some expressions of a video.

    rows: their positions in the sample; scores: float32 (R, N) of all tracks of the video, 0 where one is no candidate, or
    (R, Q) of queries; candidates: bool (R, N), or (R, Q): True for queries with masks of their own, and for those with parts that
    have a mask in some frame; parts: None, or int32 (R, Q, T), as in `Selection`, of all tracks of the video.
    """

    rows: tuple[int, ...]
    scores: NDArray[np.float32]
    candidates: NDArray[np.bool_]
    scored: Scored
    selector: Selector
    frames: int
    parts: NDArray[np.int32] | None = None

    def masks(self, queries: NDArray[np.bool_]) -> RleMasks:
        """The predicted masks of the K queries marked in bool (R, Q), row by row, as RleMasks (K, T).

        The pixels of a few frames are in memory at a time.
        """
        batch, count = self.scored.batch, int(queries.sum())
        size, frames = batch.sizes[0], self.frames
        if not count:
            return RleMasks.empty(0, frames, size)
        draw = self.scored.draw or (lambda marked: self.selector.draw(batch, marked))
        rows: list[list[bytes]] = [[] for _ in range(count)]
        device = batch.tokens.device
        # A CPU computes nothing meanwhile, and has the pixels of one part in memory.
        for part in encoded(draw(torch.from_numpy(queries).to(device)), ahead=int(device.type == "cuda")):
            per_row = part.shape[0] // count
            for k, row in enumerate(rows):
                row += [part.bytes_at(k * per_row + t, 0) for t in range(per_row)]
        return RleMasks.from_bytes(rows, frames, size)


def encoded(parts: Iterator[Tensor], ahead: int) -> Iterator[RleMasks]:
    """The masks (K · t, 1) of parts (K, t, H, W), in order. `ahead` parts are computed before the host encodes one, so that a GPU
    works on them meanwhile."""
    waiting: deque[Encoding] = deque()
    for part in parts:
        waiting.append(Encoding(part.flatten(0, 1)))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def infer_video(
    selector: Selector, sample: VideoSample, device: torch.device, rows: Sequence[int] | None = None
) -> Iterator[ScoredRows]:
    """Scores of the expressions `rows` (default: all) of a video, each exactly once, in the pieces in which the selector yields them.

    Raises ValueError when the selector leaves out an expression, scores one twice, returns logits or parts of another shape, or
    parts that are no candidates.
    """
    requested = tuple(range(len(sample.expressions)) if rows is None else rows)
    position = {sample.expressions[row].expression_id: row for row in requested}
    if not requested:
        return
    name = type(selector).__name__
    if not selector.draws and not sample.candidates[list(requested)].any():
        # No track to score: a selector need not handle a video without any.
        shape = (len(requested), len(sample.tokens))
        batch = InferenceVideo(sample, requested, (), device).batch()
        scored = Scored(batch, batch.tokens.new_zeros(len(requested), 0))
        yield ScoredRows(requested, np.zeros(shape, np.float32), np.zeros(shape, bool), scored, selector, sample.tokens.shape[1])
        return
    for scored in selector.infer(InferenceVideo(sample, requested, tuple(selector.requires), device)):
        try:
            scored_rows = tuple(position.pop(expression_id) for expression_id in scored.batch.expression_ids)
        except KeyError as error:
            raise ValueError(
                f"{name}.infer: scored expression {error} of {sample.video_id} twice, or it was not requested"
            ) from None
        logits = scored.logits.float()
        if selector.draws and scored.parts is not None:
            raise ValueError(f"{name}.infer: gives parts, but draws masks of its own; set draws = False")
        of_queries = selector.draws or scored.parts is not None
        expected = scored.batch.track_mask.shape if not of_queries else (len(scored_rows), *logits.shape[1:])
        if tuple(logits.shape) != tuple(expected) or logits.ndim != 2:
            raise ValueError(f"{name}.infer: logits {tuple(logits.shape)} of {sample.video_id}, expected {tuple(expected)}")
        frames = sample.tokens.shape[1]
        parts = None if scored.parts is None else _parts_of_video(scored, sample, (*logits.shape, frames), name)
        scores, candidates = _of_video(torch.sigmoid(logits), scored, sample, scored_rows, parts, selector.draws)
        yield ScoredRows(scored_rows, scores, candidates, scored, selector, frames, parts)
    if position:
        raise ValueError(f"{name}.infer: no scores of expression {next(iter(position))} of {sample.video_id}")


def _of_video(
    scores: Tensor,
    scored: Scored,
    sample: VideoSample,
    rows: tuple[int, ...],
    parts: NDArray[np.int32] | None,
    draws: bool,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores and candidates of all queries, or of all tracks of the video from those of the tracks in the batch."""
    values = scores.cpu().numpy().astype(np.float32)
    if parts is not None:
        some = np.asarray((parts >= 0).any(-1))
        return np.where(some, values, np.float32(0)), some
    if draws:
        return values, np.ones(values.shape, bool)
    candidates = sample.candidates[list(rows)].numpy()
    out = np.zeros(candidates.shape, np.float32)
    for i, tracks in enumerate(_tracks_of_rows(scored.batch)):
        out[i, tracks[tracks >= 0]] = values[i, tracks >= 0]
    return np.where(candidates, out, np.float32(0)), candidates


def _tracks_of_rows(batch: Batch) -> NDArray[np.int64]:
    """The number in the video of each track of each expression, int64 (B, N), -1 in padding."""
    if batch.track_index is None:
        raise ValueError("Scored.batch has no track_index; make it with InferenceVideo.batch")
    index: NDArray[np.int64] = batch.track_index.cpu().numpy()
    return np.broadcast_to(index, (len(batch), index.shape[1]))


def _parts_of_video(scored: Scored, sample: VideoSample, shape: tuple[int, ...], name: str) -> NDArray[np.int32]:
    """The parts as tracks of the video, int32 (B, Q, T) = `shape`. Raises ValueError; name: of the selector."""
    assert scored.parts is not None
    where = f"{name}.infer, video {sample.video_id}"
    parts, batch = scored.parts.cpu(), scored.batch
    if parts.dtype not in INTEGERS or tuple(parts.shape) != shape:
        raise ValueError(f"{where}: parts {parts.dtype} {tuple(parts.shape)}, expected integers (B, Q, T) = {shape}")
    values, tracks = parts.numpy().astype(np.int64), _tracks_of_rows(batch)
    none, count = values == -1, tracks.shape[1]
    if ((values < 0) & ~none).any() or (values >= count).any():
        raise ValueError(
            f"{where}: parts from {values.min()} to {values.max()}, expected -1 or a track of the batch below {count}"
        )
    if none.all():
        return np.full(shape, -1, np.int32)
    row = np.arange(len(values))[:, None, None]
    index = np.where(none, 0, values)
    wrong = np.argwhere(~none & ~batch.track_mask.cpu().numpy()[row, index])
    if len(wrong):
        b, q, t = wrong[0].tolist()
        raise ValueError(
            f"{where}: query {q} of expression {batch.expression_ids[b]} has track {values[b, q, t]} of the batch in frame {t}, which "
            "is no candidate of the expression"
        )
    return np.where(none, -1, tracks[row, index]).astype(np.int32)


def queries_to_draw(scores: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Which queries have their masks predicted, bool (R, Q): those with scores (R, Q) above `threshold`, and each row's best."""
    best = np.zeros(scores.shape, bool)
    if scores.shape[1]:
        np.put_along_axis(best, scores.argmax(1)[:, None], True, 1)
    return best | (scores > threshold)
