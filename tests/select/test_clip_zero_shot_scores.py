"""The CLIP baseline: its scores where tracks are absent, alone, or several."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rvos_cache.clip.image import ImageHead
from rvos_cache.clip.pooling import POOL
from rvos_select.data.batch import Batch
from rvos_select.selectors.clip_zero_shot import ClipZeroShot, ClipZeroShotConfig

pytestmark = pytest.mark.usefixtures("on_cpu")


def selector_of(pooled: Tensor, sentence: Tensor, **config: Any) -> tuple[ClipZeroShot, Batch]:
    """A selector whose head returns what it reads, and a batch of one expression. pooled: (T, N, P)."""
    selector = ClipZeroShot(ClipZeroShotConfig(**config))
    t, n, p = pooled.shape
    selector.attach_frozen("clip_head", ImageHead(p, nn.Identity(), torch.tensor(math.log(10.0))))
    batch = Batch(
        torch.zeros(1, n, t, 1), torch.ones(1, t, dtype=torch.bool), torch.ones(1, n, dtype=torch.bool), sentence[None, None],
        torch.ones(1, 1, dtype=torch.bool), features={POOL: pooled[None]},
    )  # fmt: skip
    return selector.eval(), batch


def test_absent_frames_and_absent_tracks() -> None:
    """A track that is absent in some frames is scored by the others; one that is never present is the last, whatever the cosines."""
    pooled = torch.tensor([[[-1.0, 0.1], [0, 0], [0, 0]], [[-2.0, 0.2], [-1.0, 1.0], [0, 0]]])
    selector, batch = selector_of(pooled, torch.tensor([1.0, 0.0]))
    scores = torch.sigmoid(selector(batch))[0]
    cosines = torch.tensor([-1 / math.sqrt(1.01), -1 / math.sqrt(2), -1])
    assert torch.allclose(scores, torch.softmax(10 * cosines, 0), atol=1e-5) and scores.argmin() == 2


def test_an_absent_track_does_not_raise_the_others() -> None:
    """With score=sigmoid: the tracks that are present have the scores that they have without it, and its own is 0."""
    pooled = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    for count in (2, 3):
        selector, batch = selector_of(pooled[:, :count], torch.tensor([1.0, 0.0]), score="sigmoid")
        scores = torch.sigmoid(selector(batch))[0]
        assert torch.allclose(scores[:2], torch.sigmoid(torch.tensor([10.0, -10.0]))) and (scores[2:] < 1e-4).all()


def test_projections_of_length_one_are_averaged_by_default() -> None:
    """A frame with large features does not outweigh the others; in the mean of the features it does."""
    pooled = torch.tensor([[[100.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 1.0]]])
    for average, expected in (("projections", 1 / math.sqrt(5)), ("features", 100 / math.sqrt(100**2 + 2**2))):
        selector, batch = selector_of(pooled, torch.tensor([1.0, 0.0]), average=average)
        tracks, present = selector.tracks(batch)
        assert tracks[0, 0, 0].item() == pytest.approx(expected, abs=1e-5) and present.all()


@pytest.mark.parametrize(("score", "expected"), [("softmax", 1.0), ("sigmoid", 0.5)])
def test_a_single_candidate(score: str, expected: float) -> None:
    selector, batch = selector_of(torch.ones(2, 1, 3), torch.tensor([1.0, 0.0, 0.0]), score=score)
    logits = selector(batch)
    assert logits.isfinite().all() and torch.sigmoid(logits).item() == pytest.approx(expected)


def test_a_sigmoid_selects_several_and_the_threshold_is_a_setting() -> None:
    pooled = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 1.0]]])
    selector, batch = selector_of(pooled, torch.tensor([1.0, 0.0]), score="sigmoid", threshold=0.9)
    scores = torch.sigmoid(selector(batch))[0]
    assert selector.threshold == 0.9 and selector.empty == "top1"
    assert ((scores > 0.9) == torch.tensor([True, True, False, False])).all()
    assert ClipZeroShot(ClipZeroShotConfig()).threshold == 0.5
