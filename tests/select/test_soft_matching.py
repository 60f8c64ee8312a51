"""Costs of soft sums against those of dense masks, and labels of tracks by hand and against every assignment."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rvos_cache.soft_overlap import soft_overlap
from rvos_cache.types import Overlap
from rvos_select.losses.matching import SoftSums, bce_costs, dice_costs, soft_costs
from rvos_select.selectors.matching import (
    IGNORED,
    NO_OBJECT,
    REFERRED,
    MatchRule,
    TrackCosts,
    counted_track_costs,
    match_tracks,
    soft_parts,
)

CELLS = 12 * 15


def dense(n: int, a: int, t: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits (T, N, h, w) and shares (T, A, h, w) of 12 by 15 cells."""
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(t, n, 12, 15, generator=generator)
    return logits, (3 * torch.rand(t, a, 12, 15, generator=generator) - 1).clamp(0, 1)


def stored(logits: Tensor, shares: Tensor, annotated: Any = None) -> tuple[SoftSums, Tensor]:
    sums = {name: torch.from_numpy(value) for name, value in soft_overlap(logits, shares, annotated).items()}
    return SoftSums(sums["soft"], sums["soft_track"], sums["soft_truth"]), sums["soft_cells"]


def at(part: SoftSums, frames: list[int]) -> SoftSums:
    return SoftSums(part.both[..., frames, :], part.track[..., frames, :], part.truth[..., frames])


@pytest.mark.parametrize("frames", [[0, 1, 2, 3, 4, 5, 6], [0, 3, 6], [2], [1, 4, 4], [5, 2]])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_costs_are_those_of_dense_masks(frames: list[int], seed: int) -> None:
    """Sums of a whole video, stored in float32; clips of it that are strided, of one frame, with a frame twice, backwards."""
    logits, shares = dense(6, 3, 7, seed)
    part, cells = stored(logits, shares)
    x, y = (maps[frames].transpose(0, 1).flatten(1).double() for maps in (logits, shares))
    inter = x.sigmoid() @ y.T
    wanted = (bce_costs(x, y), dice_costs(x, y), inter / (x.sigmoid().sum(1)[:, None] + y.sum(1) - inter))
    for given in (cells[frames], CELLS):
        for value, expected in zip(soft_costs(at(part, frames), given), wanted, strict=True):
            assert value.shape == (6, 3) and value.dtype == torch.float32
            torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)


def test_frames_without_annotation_or_in_padding_are_not_counted() -> None:
    logits, shares = dense(4, 2, 5, 3)
    part, cells = stored(logits, shares, [True, False, True, True, False])
    wanted = soft_costs(*stored(logits[[0, 2, 3]], shares[[0, 2, 3]]))
    padded = SoftSums(*(torch.cat([x, torch.zeros_like(x)], x.ndim - behind) for x, behind in zip(part, (2, 2, 1))))
    for given, number in ((part, cells), (padded, torch.cat([cells, torch.zeros_like(cells)]))):
        for value, expected in zip(soft_costs(given, number), wanted, strict=True):
            torch.testing.assert_close(value, expected)
    for value, number in zip(soft_costs(part, torch.zeros(5, dtype=torch.int32)), (0, 0, 0), strict=True):
        assert (value == number).all()


def test_expressions_of_a_batch_are_as_each_alone() -> None:
    """Of one video, whose tracks they share, and of two."""
    (one, cells), (two, _) = (stored(*dense(4, 2, 5, seed)) for seed in (4, 5))
    of_video = soft_costs(
        SoftSums(torch.stack([one.both, two.both]), one.track[None], torch.stack([one.truth, two.truth])), cells[None]
    )
    of_two = soft_costs(SoftSums(*(torch.stack(pair) for pair in zip(one, two))), torch.stack([cells, cells]))
    for i, part in enumerate((one, two)):
        for value, expected in zip(of_two, soft_costs(part, CELLS), strict=True):
            torch.testing.assert_close(value[i], expected)
        alone = soft_costs(SoftSums(part.both, one.track, part.truth), cells)
        for value, expected in zip(of_video, alone, strict=True):
            torch.testing.assert_close(value[i], expected)


@pytest.mark.parametrize(("n", "a"), [(0, 2), (3, 0), (0, 0)])
def test_no_track_or_no_object(n: int, a: int) -> None:
    part, cells = stored(*dense(n, a, 3, 0))
    bce, dice, iou = soft_costs(part, cells)
    assert bce.shape == dice.shape == iou.shape == (n, a)
    matches = match_tracks(TrackCosts(bce + dice, iou, torch.arange(a)), torch.zeros(n), MatchRule("iou_multi"))
    assert matches.labels.tolist() == [NO_OBJECT] * n and not len(matches.tracks) and matches.uncovered == a


def costs(iou: list[list[float]], visible: list[int] | None = None) -> TrackCosts:
    """Costs of 1 - IoU."""
    values = torch.tensor(iou)
    return TrackCosts(
        1 - values, values, torch.arange(values.shape[1]) if visible is None else torch.tensor(visible, dtype=torch.long)
    )


TABLE = [[0.9, 0.0], [0.8, 0.1], [0.0, 0.3], [0.0, 0.0]]
"""Of four tracks with two objects: two cover the first one, none the second one."""


@pytest.mark.parametrize(
    ("rule", "labels", "objects", "uncovered"),
    [
        ({}, [0, 1, 0, 1], [0, 1], 1),
        ({"match": "iou_multi"}, [0, 0, 0, 1], [0, 1, 0], 1),
        ({"match": "iou_multi", "positive_iou": 0.85}, [0, 1, 0, 1], [0, 1], 1),
        ({"least_iou": 0.4}, [0, 1, 1, 1], [0], 1),
        ({"duplicate_iou": 0.7}, [0, IGNORED, 0, 1], [0, 1], 1),
        ({"duplicate_iou": 0.85}, [0, 1, 0, 1], [0, 1], 1),
        ({"least_iou": 0.4, "duplicate_iou": 0.2}, [0, IGNORED, IGNORED, 1], [0], 1),
        ({"positive_iou": 0.2}, [0, 1, 0, 1], [0, 1], 0),
    ],
)
def test_labels_by_hand(rule: dict[str, Any], labels: list[int], objects: list[int], uncovered: int) -> None:
    matches = match_tracks(costs(TABLE), torch.zeros(4), MatchRule(**rule))
    assert matches.labels.tolist() == labels and matches.uncovered == uncovered
    assert matches.tracks.tolist() == [0, 2, 1][: len(objects)] and matches.objects.tolist() == objects
    assert matches.iou.tolist() == pytest.approx([0.9, 0.3][: 1 if rule.get("least_iou") else 2])


def test_the_class_term_chooses_between_tracks_and_not_between_objects() -> None:
    near = costs([[0.90, 0.0], [0.88, 0.0], [0.0, 0.7]])
    assert match_tracks(near, torch.tensor([0.1, 0.9, 0.5]), MatchRule()).tracks.tolist() == [1, 2]
    assert match_tracks(near, torch.tensor([0.1, 0.9, 0.5]), MatchRule(cost_class=0)).tracks.tolist() == [0, 2]
    swapped = match_tracks(costs([[0.9, 0.0], [0.0, 0.9]]), torch.tensor([0.0, 1.0]), MatchRule(cost_class=50))
    assert swapped.objects.tolist() == [0, 1]


def test_objects_that_no_frame_shows_and_tracks_that_are_none() -> None:
    hidden = match_tracks(costs(TABLE, [1]), torch.zeros(4), MatchRule())
    assert hidden.labels.tolist() == [1, 1, 0, 1] and hidden.objects.tolist() == [1] and hidden.uncovered == 1
    of_second = match_tracks(costs(TABLE, [1]), torch.zeros(4), MatchRule("iou_multi", positive_iou=0.05))
    assert of_second.tracks.tolist() == [2, 1] and of_second.objects.tolist() == [1, 1]
    without = match_tracks(costs(TABLE, []), torch.zeros(4), MatchRule(duplicate_iou=0.5))
    assert without.labels.tolist() == [NO_OBJECT] * 4 and without.uncovered == 0
    real = torch.tensor([False, True, True, True])
    matches = match_tracks(costs(TABLE), torch.zeros(4), MatchRule(), real)
    assert matches.labels.tolist() == [IGNORED, REFERRED, REFERRED, NO_OBJECT]
    every = match_tracks(costs(TABLE), torch.zeros(4), MatchRule("iou_multi", duplicate_iou=0.85), real)
    assert every.labels.tolist() == [IGNORED, REFERRED, REFERRED, NO_OBJECT] and every.tracks.tolist() == [1, 2]
    # A track that may not be matched covers nothing.
    assert match_tracks(costs(TABLE), torch.zeros(4), MatchRule(), torch.tensor([False, False, True, True])).uncovered == 2


@pytest.mark.parametrize("seed", range(4))
def test_the_matching_is_the_cheapest_of_all(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks, referred = torch.rand(5, 3, generator=generator), torch.rand(5, generator=generator)
    table = masks - 2 * referred[:, None]
    best = min(permutations(range(5), 3), key=lambda rows: sum(table[row, a].item() for a, row in enumerate(rows)))
    matches = match_tracks(TrackCosts(masks, torch.rand(5, 3), torch.arange(3)), referred, MatchRule())
    assert {(int(a), int(n)) for n, a in zip(matches.tracks, matches.objects)} == set(enumerate(best))


def test_costs_of_counts_are_dice_and_iou() -> None:
    """By hand: a track of 6 pixels shares 4 with an object of 5; the second object is in no annotated frame."""
    overlap = Overlap(
        np.array([[[4, 0], [0, 3]]], np.int32),
        np.array([[6, 3]], np.int32),
        np.array([[5, 0], [0, 3]], np.int32),
        np.array([True, False]),
    )
    counted = counted_track_costs(overlap, 5.0, 3.0)
    assert counted.visible.tolist() == [0] and counted.iou[0, 0].item() == pytest.approx(4 / 7)
    assert counted.masks[0, 0].item() == pytest.approx(5 * (1 - 9 / 12) + 3 * (1 - 4 / 7))


def test_names_of_the_parts() -> None:
    assert soft_parts("clip") == ("measured.soft", "measured.soft_track", "measured.soft_truth", "measured.soft_cells")
    assert soft_parts("video")[0] == "measured.soft.video"
