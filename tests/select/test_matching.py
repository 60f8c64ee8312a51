"""Matching and point losses against every permutation, dense sums and the library's own Mask2Former."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher, Mask2FormerLoss

from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.types import GroundTruth
from rvos_select.losses.matching import assign, assign_all, bce_costs, counted_costs, dice_costs
from rvos_select.losses.points import bce_loss, dice_loss, sample, uncertain_points


@pytest.mark.parametrize(("queries", "objects"), [(5, 3), (3, 5), (4, 4), (3, 0)])
def test_assignment_is_the_cheapest_of_all(queries: int, objects: int) -> None:
    cost = torch.randn(queries, objects, generator=torch.Generator().manual_seed(queries))
    rows, columns = assign(cost)
    pairs = min(queries, objects)
    assert len(set(rows.tolist())) == len(set(columns.tolist())) == len(rows) == pairs
    if queries >= objects:
        every = [sum(cost[q, a].item() for a, q in enumerate(chosen)) for chosen in permutations(range(queries), objects)]
    else:
        every = [sum(cost[q, a].item() for q, a in enumerate(chosen)) for chosen in permutations(range(objects), queries)]
    assert cost[rows, columns].sum().item() == pytest.approx(min(every))


def test_costs_of_several_expressions_are_assigned_as_one_by_one() -> None:
    g = torch.Generator().manual_seed(0)
    costs = [torch.randn(2, 4, objects, generator=g) for objects in (3, 1, 6)]
    costs[1][0, 2] = float("nan")
    for own, layers in zip(costs, assign_all(costs), strict=True):
        for cost, (rows, columns) in zip(own, layers, strict=True):
            one = assign(cost)
            assert (rows, columns) == (one[0].tolist(), one[1].tolist())
    assert assign_all([]) == []


def test_a_cost_that_is_no_number_does_not_stop_the_matching() -> None:
    """The loss is NaN then, and the training loop says of which video."""
    rows, _ = assign(torch.tensor([[float("nan")], [0.0]]))
    assert rows.tolist() == [1]


def test_costs_of_counts_are_those_of_pixels() -> None:
    """Acceptance test 6: sums over the annotated frames of a clip against the pixels themselves."""
    rng = np.random.default_rng(0)
    tracks, truth = rng.random((4, 6, 9, 11)) < 0.3, rng.random((3, 6, 9, 11)) < 0.4
    truth[1] = tracks[2]
    truth[2, 1:4] = False
    annotated = np.array([True, False, True, True, False, True])
    counts = count_overlap(RleMasks.from_dense(tracks), GroundTruth(("a", "b", "c"), RleMasks.from_dense(truth), annotated))
    dice, iou = counted_costs(counts)
    x, y = (torch.from_numpy(m[:, annotated].reshape(len(m), -1)).float() for m in (tracks, truth))
    # A logit of +-50 is a probability of 1 or 0.
    np.testing.assert_allclose(dice, dice_costs(100 * x - 50, y).numpy(), atol=1e-6)
    for n in range(4):
        for a in range(3):
            both = (tracks[n] & truth[a])[annotated].sum() / (tracks[n] | truth[a])[annotated].sum()
            assert iou[n, a] == pytest.approx(1 - both, abs=1e-6)
    assert iou[2, 1] == dice[2, 1] == 0


def test_costs_of_empty_masks_are_numbers() -> None:
    empty = RleMasks.empty(1, 2, (4, 5))
    dice, iou = counted_costs(count_overlap(empty, GroundTruth(("a",), empty, np.ones(2, bool))))
    assert (dice.item(), iou.item()) == (0.0, 1.0)


def test_the_matching_is_mask2former_s() -> None:
    """The same random points under the same seed; one frame, since the library matches images."""
    g = torch.Generator().manual_seed(1)
    logits, truth = 3 * torch.randn(7, 8, 10, generator=g), (torch.rand(3, 32, 40, generator=g) < 0.4).float()
    classes = torch.randn(7, 3, generator=g)
    matcher = Mask2FormerHungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=60)
    torch.manual_seed(5)
    ((theirs_q, theirs_a),) = matcher(logits[None], classes[None], [truth], [torch.zeros(3, dtype=torch.long)])
    torch.manual_seed(5)
    points = torch.rand(1, 60, 2)
    at, wanted = sample(logits[None], points)[0], sample(truth[None], points)[0]
    cost = 5 * bce_costs(at, wanted) + 5 * dice_costs(at, wanted) - 2 * classes.softmax(-1)[:, :1]
    rows, columns = assign(cost)
    assert (rows.tolist(), columns.tolist()) == (theirs_q.tolist(), theirs_a.tolist())


def test_the_mask_losses_are_mask2former_s() -> None:
    g = torch.Generator().manual_seed(2)
    logits, truth = 3 * torch.randn(1, 4, 8, 10, generator=g), (torch.rand(3, 32, 40, generator=g) < 0.4).float()
    config = Mask2FormerConfig(train_num_points=100, oversample_ratio=3.0, importance_sample_ratio=0.75)
    theirs = Mask2FormerLoss(config, {})
    pairs = (torch.tensor([3, 0, 2]), torch.tensor([1, 2, 0]))
    torch.manual_seed(6)
    wanted = theirs.loss_masks(logits, [truth], [pairs], 3)
    torch.manual_seed(6)
    chosen = logits[0, pairs[0]]
    points = uncertain_points(chosen, 100)
    at, labels = sample(chosen[:, None], points)[:, 0], sample(truth[pairs[1]][:, None], points)[:, 0]
    torch.testing.assert_close(bce_loss(at, labels) / 3, wanted["loss_mask"])
    torch.testing.assert_close(dice_loss(at, labels) / 3, wanted["loss_dice"])


def test_sampling_commutes_with_the_dot_product() -> None:
    """Acceptance test 3: the features at a point times an embedding are the mask's logit there."""
    g = torch.Generator().manual_seed(3)
    features, embed = torch.randn(2, 32, 9, 13, generator=g), torch.randn(5, 32, generator=g)
    points = torch.rand(2, 400, 2, generator=g)
    first = torch.einsum("kc,tcp->tkp", embed, sample(features, points))
    torch.testing.assert_close(first, sample(torch.einsum("kc,tchw->tkhw", embed, features), points), atol=1e-4, rtol=0)


def test_points_gather_where_the_logits_are_near_zero() -> None:
    """A mask whose left half is sure and right half is not: 3 of 4 points on the right, and half of the rest."""
    logits = torch.full((1, 20, 20), 10.0)
    logits[..., 10:] = 0.01
    torch.manual_seed(0)
    points = uncertain_points(logits, 4000)
    assert points.shape == (1, 4000, 2)
    assert ((points >= 0) & (points < 1)).all()
    assert (points[..., 0] > 0.5).float().mean().item() == pytest.approx(0.875, abs=0.02)
