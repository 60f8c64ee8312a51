"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rvos_select.losses.tracks import TEMPERATURE, alignment_code, alignment_paper, bce

ALL = torch.tensor([True])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_bce_weighs_positives_and_leaves_padding_out() -> None:
    logits = torch.tensor([[0.0, 2.0, 50.0], [1.0, 50.0, 50.0]])
    target = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    loss = bce(logits, target, mask, torch.tensor([True, True]), 1.5)
    first = (1.5 * math.log(2) + softplus(2.0)) / 2
    assert loss.item() == pytest.approx((first + softplus(1.0)) / 2, abs=1e-6)


def test_expressions_without_candidates_count_and_padding_of_b_does_not() -> None:
    logits, target = torch.zeros(3, 2), torch.zeros(3, 2)
    mask = torch.tensor([[True, True], [False, False], [False, False]])
    counted = torch.tensor([True, True, False])
    assert bce(logits, target, mask, counted, 1.0).item() == pytest.approx(math.log(2) / 2)
    nothing = torch.zeros(3, 2, dtype=torch.bool)
    assert bce(logits, target, nothing, torch.zeros(3, dtype=torch.bool), 1.0).item() == 0.0


def test_alignment_of_the_code() -> None:
    assert pytest.approx(1.0725082) == TEMPERATURE
    k = TEMPERATURE
    objects = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    anchor = torch.tensor([[1.0, 1.0]])
    negatives = torch.tensor([[0.0, 1.0], [1.0, -1.0]])
    target = torch.tensor([[1.0, 0.0]])
    # p = k·(1, 2); n = k·[[0, 1], [2, -2]]; largest: second for track 0 (y=1 -> target 0), first for track 1 (target 1)
    positive = (softplus(-k) + softplus(2 * k)) / 2
    negative = (softplus(0) + softplus(k) + softplus(-2 * k) + softplus(-2 * k)) / 4
    mask = torch.tensor([[True, True]])
    loss = alignment_code(objects, anchor, negatives, target, mask, ALL)
    assert loss.item() == pytest.approx(1.5 * positive + negative, abs=1e-6)


def test_alignment_of_the_paper() -> None:
    objects = torch.tensor([[[3.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])
    anchor = torch.tensor([[5.0, 0.0]])
    negatives = torch.tensor([[0.0, 1.0], [-4.0, 0.0]])
    target = torch.tensor([[1.0, 0.0, 1.0]])
    mask = torch.tensor([[True, True, False]])
    # d(anchor) = 0, 1; d(negatives) = (1, 2), (0, 1)
    positive = 0 - (1 + 2)
    negative = 0 - 1 - 1  # closest minus anchor minus the other
    loss = alignment_paper(objects, anchor, negatives, target, mask, ALL)
    assert loss.item() == pytest.approx((positive + negative) / 2, abs=1e-6)


@pytest.mark.parametrize("loss", [alignment_code, alignment_paper])
def test_alignment_pulls_positives_to_the_sentence(loss: object) -> None:
    negatives = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    anchor, mask = torch.tensor([[1.0, 0.0]]), torch.tensor([[True]])
    near, far = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[-1.0, 0.0]]])
    yes, no = torch.tensor([[1.0]]), torch.tensor([[0.0]])
    assert loss(near, anchor, negatives, yes, mask, ALL) < loss(far, anchor, negatives, yes, mask, ALL)  # type: ignore[operator]
    assert loss(far, anchor, negatives, no, mask, ALL) < loss(near, anchor, negatives, no, mask, ALL)  # type: ignore[operator]
