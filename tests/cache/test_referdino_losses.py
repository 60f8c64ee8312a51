"""ReferDINO's matching and losses against recorded values of the released ones, the library's own focal loss and GIoU, and by hand."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from golden_values import FOLDER, SHARED, TOLERANCE, needs
from safetensors.torch import load_file
from torch import Tensor
from transformers.loss.loss_for_object_detection import generalized_box_iou

from rvos_cache.media.boxes import corners
from rvos_cache.trackers.referdino_losses import TERMS, Predicted, Truth, focal, giou, losses, match

CONFIGS = {
    "mevis_swint": ((2, 1, 1, 5, 5, 2), (2, 1, 1, 5, 5, 2)),
    "mevis_swinb": ((1, 3, 3, 5, 4, 4), (1, 3, 3, 5, 4, 4)),
    "ytvos_swint": ((4, 5, 2, 5, 5, 5), (4, 5, 2, 5, 5, 5)),
    "a2d_swint": ((4, 5, 2, 2, 5, 5), (4, 5, 2, 5, 2, 5)),
}
"""Costs and weights in the order of TERMS."""


@cache
def golden() -> dict[str, Tensor]:
    """The recorded tensors: those of tests/golden, replaced by whole ones where the project's folder of golden values is there."""
    tensors = load_file(FOLDER / "referdino_losses.safetensors")
    for name in ("e.truth.masks", "e.truth.real"):
        tensors[name] = torch.from_numpy(np.unpackbits(tensors[name].numpy(), axis=-1).astype(bool))
    if (whole := SHARED / "referdino.safetensors").is_file():
        tensors |= {name: tensor for name, tensor in load_file(whole).items() if name.startswith("e.")}
    return tensors


def predicted(name: str) -> Predicted:
    """The last layer, the encoder's prediction, or its proposals, which have the logits and masks of the prediction."""
    source = "interm" if name == "proposals" else name
    needs(golden(), f"e.{source}.masks")
    fields = {field: golden()[f"e.{source}.{field}"] for field in Predicted._fields}
    return Predicted(**{**fields, "boxes": golden()[f"e.{name}.boxes"]})


def truth() -> Truth:
    return Truth(*(golden()[f"e.truth.{field}"] for field in Truth._fields))


def settings(config: str) -> tuple[dict[str, float], dict[str, float]]:
    costs, weights = (dict(zip(TERMS, values, strict=True)) for values in CONFIGS[config])
    return costs, weights


@pytest.mark.parametrize("name", ["last", "interm", "proposals"])
@pytest.mark.parametrize("config", CONFIGS)
def test_queries_are_matched_as_released(config: str, name: str) -> None:
    costs, _ = settings(config)
    assert match(predicted(name), truth(), costs).tolist() == golden()[f"e.{config}.match.{name}"].tolist()


@pytest.mark.parametrize(("name", "matched_by"), [("last", None), ("interm", "proposals")])
@pytest.mark.parametrize("config", CONFIGS)
def test_every_term_is_the_released_one(config: str, name: str, matched_by: str | None) -> None:
    costs, weights = settings(config)
    by = None if matched_by is None else predicted(matched_by)
    terms = losses(predicted(name), truth(), costs=costs, weights=weights, matched_by=by)
    assert list(terms) == [*TERMS, "loss"]
    for term, value in terms.items():
        stored = golden()[f"e.{config}.{name}.{term}"]
        assert abs(value - stored) <= TOLERANCE * max(1, abs(stored)), term


def test_queries_are_matched_by_the_given_prediction() -> None:
    costs, weights = settings("mevis_swint")
    last = predicted("last")
    # The queries in another order, so that other ones match.
    other = Predicted(*(field.roll(1, 2) for field in last))
    one, two = (losses(last, truth(), costs=costs, weights=weights, matched_by=by) for by in (last, other))
    assert match(last, truth(), costs).tolist() != match(other, truth(), costs).tolist()
    assert abs(one["l1"] - two["l1"]) > 0.01


def test_parts_of_a_step_add_up() -> None:
    costs, weights = settings("mevis_swint")
    whole = losses(predicted("last"), truth(), costs=costs, weights=weights)
    count, parts = float(truth().valid.sum()), []
    for part in (slice(0, 1), slice(1, 3)):
        clips, targets = Predicted(*(f[part] for f in predicted("last"))), Truth(*(f[part] for f in truth()))
        parts.append(losses(clips, targets, costs=costs, weights=weights, num_boxes=count))
    for term, value in whole.items():
        torch.testing.assert_close(sum(part[term] for part in parts), value)


def test_only_the_matched_query_has_gradients_of_its_box_and_mask() -> None:
    costs, weights = settings("ytvos_swint")
    output = Predicted(*(field.clone().requires_grad_() for field in predicted("last")))
    losses(output, truth(), costs=costs, weights=weights)["loss"].backward()
    queries = match(output, truth(), costs)
    for field, of_query in ((output.boxes, (1, 3)), (output.masks, (1, 3, 4))):
        changed = field.grad.abs().sum(of_query) > 0
        assert changed.nonzero()[:, 1].tolist() == queries.tolist()
    assert (output.logits.grad != 0).all()


def test_a_query_is_a_positive_in_the_frames_that_show_the_object() -> None:
    costs, weights = settings("mevis_swint")
    output = Predicted(*(field.clone().requires_grad_() for field in predicted("last")))
    losses(output, truth(), costs=costs, weights=weights)["cls"].backward()
    # The gradient of a positive is negative: its logit is to grow.
    expected = torch.zeros(output.logits.shape, dtype=torch.bool)
    expected[torch.arange(3), :, match(output, truth(), costs)] = truth().valid
    assert ((output.logits.grad < 0) == expected).all()


def test_logits_in_the_padding_count_in_the_projections_alone() -> None:
    costs, weights = settings("a2d_swint")
    last, target = predicted("last"), truth()
    padding = ~target.real[:, 2::4, 2::4]
    masks = last.masks.masked_fill(padding[:, None, None], 9.0)
    before, after = (losses(p, target, costs=costs, weights=weights) for p in (last, last._replace(masks=masks)))
    assert match(last, target, costs).tolist() == match(last._replace(masks=masks), target, costs).tolist()
    for term in ("cls", "l1", "giou", "mask", "dice"):
        torch.testing.assert_close(before[term], after[term])
    assert abs(before["proj"] - after["proj"]) > 1e-3


def test_a_clip_without_the_object_has_negatives_alone() -> None:
    costs, weights = settings("mevis_swint")
    last, target = predicted("last"), truth()
    empty = Truth(torch.zeros_like(target.boxes), torch.zeros_like(target.valid), torch.zeros_like(target.masks), target.real)
    terms = losses(last, empty, costs=costs, weights=weights)
    assert [terms[name].item() for name in TERMS[1:]] == [0] * 5
    p = last.logits.sigmoid()
    by_hand = -(0.75 * p**2 * (1 - p).log()).sum()
    torch.testing.assert_close(terms["cls"], by_hand)


def test_giou_is_the_library_s() -> None:
    boxes = predicted("last").boxes.flatten(0, 2)[:40].clamp(min=0.02)
    target = truth().boxes.flatten(0, 1)[truth().valid.flatten()]
    expected = generalized_box_iou(corners(boxes), corners(target))
    torch.testing.assert_close(giou(boxes[:, None], target[None]), expected, atol=2e-3, rtol=0)
    same = torch.tensor([0.5, 0.5, 0.2, 0.4])
    assert giou(same, same).item() == pytest.approx(1, abs=1e-4)
    # Two squares of side 0.2 whose corners touch: IoU 0, the hull twice as long on both sides.
    other = same.new_tensor([0.3, 0.3, 0.2, 0.2])
    assert giou(same.new_tensor([0.5, 0.5, 0.2, 0.2]), other).item() == pytest.approx(-0.5, abs=1e-4)


def test_the_eps_of_the_matching_matters_for_boxes_without_area() -> None:
    """Two points whose hull is 1e-6 = e: 0/e - e/2e, and with e on both sides e/e - 2e/2e."""
    one, other = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.501, 0.501, 0.0, 0.0])
    assert giou(one, other).item() == pytest.approx(-0.5, abs=1e-3)
    assert giou(one, other, smooth=True).item() == pytest.approx(0, abs=1e-3)


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([0.0, 0.0, 2.0])
    labels = torch.tensor([1.0, 0.0, 1.0])
    p = torch.tensor(2.0).sigmoid().item()
    log2 = torch.tensor(2.0).log().item()
    expected = [0.25 * 0.25 * log2, 0.75 * 0.25 * log2, -0.25 * (1 - p) ** 2 * torch.tensor(p).log().item()]
    torch.testing.assert_close(focal(logits, labels), torch.tensor(expected))
