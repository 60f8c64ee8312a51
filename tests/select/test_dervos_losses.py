"""DeRVOS's loss against a plain one of hand-made matchings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rvos_cache.types import Overlap
from rvos_select.data.batch import Batch
from rvos_select.selectors.dervos import DervosConfig
from rvos_select.selectors.dervos_losses import matched, matched_parts, track_losses


def plain_loss(scores: Tensor, labels: list[list[int]], frames: list[int], weight: float) -> float:
    """Means over expressions, and frames, of the weighted mean over tracks; labels 0 referred, 1 not, -1 without a loss."""
    values = []
    for b, own in enumerate(labels):
        per_frame = []
        for t in range(frames[b]):
            total = norm = 0.0
            for n, label in enumerate(own):
                if label >= 0:
                    w = weight if label else 1.0
                    total += w * -scores[b, n, t].log_softmax(-1)[label].item()
                    norm += w
            per_frame.append(total / max(norm, weight))
        values.append(sum(per_frame) / len(per_frame))
    return sum(values) / len(values)


def counts(inter: list[list[int]], area: list[int], truth: list[int], frames: int = 2) -> Overlap:
    """The same counts in each frame."""

    def each(values: Any) -> np.ndarray:
        return np.repeat(np.array(values, np.int64)[..., None], frames, -1)

    return Overlap(each(inter), each(area), each(truth), np.ones(frames, bool))


def two_expressions(**values: Any) -> tuple[Tensor, Batch]:
    """Random scores of 3 tracks. Objects of 100 pixels: track 0 covers the first by 90, track 2 by 60; track 1 the second by 80."""
    torch.manual_seed(0)
    batch = Batch(
        tokens=torch.zeros(2, 3, 3, 4),
        frame_mask=torch.tensor([[True, True, False], [True, True, False]]),
        track_mask=torch.tensor([[True, True, True], [True, True, False]]),
        words=torch.zeros(2, 2, 4),
        word_mask=torch.ones(2, 2, dtype=torch.bool),
        frame_index=torch.tensor([[3, 5, -1], [0, 1, -1]]),
        overlap=(
            counts([[90, 0], [0, 80], [60, 0]], [100, 100, 100], [100, 100]),
            counts([[90], [0]], [100, 100], [100]),
        ),
    )
    return torch.randn(2, 3, 3, 2), replace(batch, **values)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ({}, [[0, 0, 1], [0, 1, -1]]),
        ({"least_iou": 0.7}, [[0, 1, 1], [0, 1, -1]]),
        ({"match": "iou_multi", "positive_iou": 0.4}, [[0, 0, 0], [0, 1, -1]]),
        ({"duplicate_iou": 0.4}, [[0, 0, -1], [0, 1, -1]]),
    ],
)
def test_the_loss_of_counted_masks(values: dict[str, Any], labels: list[list[int]]) -> None:
    config = DervosConfig(**{"match_cost": "counts", "cost_class": 0.0, **values})
    scores, batch = two_expressions()
    losses = track_losses(scores, batch, config)
    expected = plain_loss(scores, labels, [2, 2], 0.1)
    assert losses["class"].item() == pytest.approx(expected, rel=1e-5) and losses["loss"] == 2 * losses["class"]
    ious = [90 / 110, 80 / 120][: 1 if values.get("least_iou") else 2]
    assert losses["matched_iou"].item() == pytest.approx((sum(ious) / len(ious) + 90 / 110) / 2, rel=1e-5)
    assert losses["uncovered"].item() == 0


def test_a_class_term_chooses_between_similar_tracks() -> None:
    scores, batch = two_expressions()
    scores[0, :, :, 0], scores[0, :, :, 1] = 0.0, 0.0
    scores[0, 2, :2, 0] = 50.0  # of padding nothing counts
    scores[0, 0, 2, 0] = 500.0
    config = {"match_cost": "counts"}
    assert matched(scores, batch, DervosConfig(**{**config, "cost_class": 0.0}))[0].labels.tolist() == [0, 0, 1]
    assert matched(scores, batch, DervosConfig(**{**config, "cost_class": 20.0}))[0].labels.tolist() == [1, 0, 0]


def test_a_positive_counts_only_where_it_is_visible() -> None:
    scores, batch = two_expressions()
    assert batch.overlap is not None
    for overlap in batch.overlap:
        overlap.gt_area[:, 1] = 0
    config = DervosConfig(**{"match_cost": "counts", "cost_class": 0.0, "visible_only": True})
    value = track_losses(scores, batch, config)["class"].item()
    first = plain_loss(scores, [[0, 0, 1], [0, 1, -1]], [1, 1], 0.1)
    second = plain_loss(scores[:, :, 1:], [[-1, -1, 1], [-1, 1, -1]], [1, 1], 0.1)
    assert value == pytest.approx((first + second) / 2, rel=1e-5)
    # Counts of all frames of the video, of which the clip has some.
    long = tuple(
        Overlap(*(np.zeros((*a.shape[:-1], 6), a.dtype) for a in (o.inter, o.area, o.gt_area)), np.ones(6, bool))
        for o in batch.overlap
    )
    for whole, o, at in zip(long, batch.overlap, ([3, 5], [0, 1])):
        for name in ("inter", "area", "gt_area"):
            getattr(whole, name)[..., at] = getattr(o, name)
    video = config.model_copy(update={"match_scope": "video"})
    assert track_losses(scores, replace(batch, overlap=long), video)["class"].item() == pytest.approx(value, rel=1e-5)


def test_uncovered_objects_are_counted() -> None:
    scores, batch = two_expressions(overlap=(counts([[20], [0], [0]], [100] * 3, [100]), counts([[90], [0]], [100] * 2, [100])))
    losses = track_losses(scores, batch, DervosConfig(**{"match_cost": "counts", "cost_class": 0.0}))
    assert losses["uncovered"].item() == 0.5
    assert losses["matched_iou"].item() == pytest.approx((20 / 180 + 90 / 110) / 2, rel=1e-5)


@pytest.mark.parametrize("scope", ["clip", "video"])
def test_parts_of_the_matching(scope: str) -> None:
    end = ".video" if scope == "video" else ""
    soft, counted = (matched_parts(DervosConfig(**{"match_cost": cost, "match_scope": scope})) for cost in ("soft", "counts"))
    assert soft == tuple(f"measured.{name}{end}" for name in ("soft", "soft_track", "soft_truth", "soft_cells"))
    assert counted == (f"overlap{end}",)
