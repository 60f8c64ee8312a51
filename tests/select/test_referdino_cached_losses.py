"""The losses of ReferDINO's cached form: by hand, against the pixels of small masks, and against the losses of its live form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.trackers.referdino_losses import TERMS as LIVE_TERMS
from rvos_cache.types import GroundTruth, Overlap
from rvos_select.selectors.referdino.cached_losses import (
    LossSettings,
    Objects,
    TrackOutput,
    normalisers,
    objects_of,
    track_costs,
    track_losses,
    union_costs,
    visible_iou,
)
from rvos_select.selectors.referdino_losses import Predicted, Truth, losses, match

COSTS = {"cls": 2.0, "l1": 1.0, "giou": 1.0, "mask": 0.0, "dice": 5.0}
WEIGHTS = {"cls": 2.0, "l1": 1.0, "giou": 1.0}
SETTINGS = LossSettings(COSTS, WEIGHTS)
SIZE = (12, 16)


def counts(tracks: Tensor, truth: Tensor, annotated: Sequence[bool] | None = None) -> Overlap:
    """Of masks bool (N, T, H, W) and (A, T, H, W)."""
    flags = np.ones(tracks.shape[1], bool) if annotated is None else np.array(annotated)
    names = tuple(map(str, range(len(truth))))
    objects = RleMasks.from_dense(truth.numpy()) if len(truth) else RleMasks.empty(0, truth.shape[1], truth.shape[2:])
    return count_overlap(RleMasks.from_dense(tracks.numpy()), GroundTruth(names, objects, flags))


def blocks(*boxes: tuple[int, int, int, int] | None, frames: int = 1) -> Tensor:
    """Masks (len(boxes), frames, H, W), filled from x0, y0 up to and with x1, y1; None: empty."""
    out = torch.zeros(len(boxes), frames, *SIZE, dtype=torch.bool)
    for mask, box in zip(out, boxes):
        if box is not None:
            mask[:, box[1] : box[3] + 1, box[0] : box[2] + 1] = True
    return out


def random_clips(seed: int, clips: int = 3, tracks: int = 5, frames: int = 4) -> dict[str, Any]:
    """Predictions of `clips` expressions with two disjoint objects each, the second of them absent in the last frame."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.zeros(clips, 2, frames, *SIZE, dtype=torch.bool)
    for b in range(clips):
        for t in range(frames):
            x, y = (int(torch.randint(0, 4, (), generator=g)) for _ in range(2))
            truth[b, 0, t, y : y + 6, x : x + 3] = True
            if t < frames - 1:
                truth[b, 1, t, y + 1 : y + 5, x + 6 : x + 10] = True
    # The first expression's objects are absent from its second frame.
    truth[0, :, 1] = False
    masks = torch.rand(clips, tracks, frames, *SIZE, generator=g) < 0.3
    masks[:, 3] = truth.any(1)
    output = TrackOutput(
        torch.randn(clips, frames, tracks, generator=g) - 2,
        torch.rand(clips, frames, tracks, 4, generator=g) * 0.3 + 0.1,
        torch.ones(clips, tracks, dtype=torch.bool),
        torch.ones(clips, frames, dtype=torch.bool),
    )
    objects, overlaps = [objects_of(m) for m in truth], [counts(m, o) for m, o in zip(masks, truth)]
    return {"output": output, "objects": objects, "overlaps": overlaps, "truth": truth, "masks": masks}


def of(clips: dict[str, Any], settings: LossSettings = SETTINGS, **options: Any) -> dict[str, Tensor]:
    counted = torch.ones(len(clips["objects"]), dtype=torch.bool)
    return track_losses(clips["output"], clips["objects"], clips["overlaps"], counted, settings, **options)


def part(clips: dict[str, Any], rows: slice) -> dict[str, Any]:
    output = TrackOutput(*(field[rows] for field in clips["output"]))
    return {"output": output, "objects": clips["objects"][rows], "overlaps": clips["overlaps"][rows]}


def live(clips: dict[str, Any]) -> tuple[Predicted, Truth]:
    """The same as masks of certain logits and the union of the objects, four times as large."""
    union = clips["truth"].any(1)
    boxes, visible = map(torch.stack, zip(*(own.union() for own in clips["objects"])))
    large = union.repeat_interleave(4, -1).repeat_interleave(4, -2)
    output = clips["output"]
    predicted = Predicted(output.logits, output.boxes, 100.0 * clips["masks"].transpose(1, 2) - 50)
    return predicted, Truth(boxes, visible, large, torch.ones_like(large[:, 0]))


@pytest.mark.parametrize("seed", range(4))
def test_the_losses_of_the_matched_track_are_the_live_ones(seed: int) -> None:
    """Also those of Dice in the matching, because a mask's probabilities are 0 and 1."""
    clips = random_clips(seed)
    predicted, truth = live(clips)
    costs, weights = ({**dict.fromkeys(LIVE_TERMS, 0.0), **given} for given in (COSTS, WEIGHTS))
    own, expected = of(clips), losses(predicted, truth, costs=costs, weights=weights)
    for term in (*WEIGHTS, "loss"):
        torch.testing.assert_close(own[term], expected[term])
    tracks = track_costs(clips["output"], clips["objects"], clips["overlaps"], SETTINGS).argmin(1)
    assert tracks.tolist() == match(predicted, truth, costs).tolist()
    without = replace(SETTINGS, costs={**COSTS, "dice": 0.0})
    assert abs(of(clips, without)["l1"] - own["l1"]) > 1e-3


def test_costs_of_counts_are_those_of_pixels() -> None:
    """Two disjoint objects; the last frame is not annotated."""
    g = torch.Generator().manual_seed(0)
    tracks, value = torch.rand(4, 5, *SIZE, generator=g) < 0.4, torch.rand(5, *SIZE, generator=g)
    truth = torch.stack([value < 0.2, (value > 0.3) & (value < 0.6)])
    annotated = [True, True, False, True, False]
    xor, dice = union_costs(counts(tracks, truth, annotated), SIZE[0] * SIZE[1])
    union = truth.any(0)[annotated].numpy()
    for own, x, d in zip(tracks[:, annotated].numpy(), xor, dice):
        assert x == pytest.approx((own ^ union).mean())
        assert d == pytest.approx(-(2 * (own & union).sum() + 1) / (own.sum() + union.sum() + 1))


def test_each_cost_by_hand() -> None:
    """The object is a box of 2 by 2 pixels, in one of two frames; the tracks are it in both frames, and another one in none."""
    truth = blocks((2, 2, 4, 4), frames=2)
    truth[:, 1] = False
    clips = hand_made(torch.cat([blocks((2, 2, 4, 4), frames=2), blocks((6, 6, 8, 8), frames=2)]), truth)
    box = clips["objects"][0].boxes[0, 0]
    width, height = box[2:].tolist()
    zero = torch.zeros(1, 2, 2)
    output = clips["output"]._replace(logits=zero, boxes=clips["output"].boxes.detach())

    def cost(name: str, box_frames: Any) -> list[float]:
        costs = {**dict.fromkeys(COSTS, 0.0), name: 1.0}
        settings = LossSettings(costs, WEIGHTS, box_frames=box_frames)
        (row,) = track_costs(output, clips["objects"], clips["overlaps"], settings).tolist()
        return row

    in_zeros = [float(output.boxes[0, 1, n].sum()) for n in range(2)]
    apart = 4 / 16 + 4 / 12
    assert cost("l1", "visible") == pytest.approx([0, apart], abs=1e-6)
    assert cost("l1", "all") == pytest.approx([in_zeros[0] / 2, (apart + in_zeros[1]) / 2])
    # The hull of the two boxes has the sides of 6 pixels, the boxes of 2.
    eps, area, hull = 1e-6, width * height, 9 * width * height
    expected = [eps / (area + eps) - 1, -(eps / (2 * area + eps) - (hull - 2 * area + eps) / (hull + eps))]
    assert cost("giou", "visible") == pytest.approx(expected, abs=1e-6)
    assert cost("cls", "all") == cost("cls", "visible") == pytest.approx([-0.5 * 0.25 * float(np.log(2))] * 2, abs=1e-6)
    assert cost("mask", "all") == pytest.approx([9 / 384, 27 / 384])
    assert cost("dice", "all") == pytest.approx([-19 / 28, -1 / 28])


def test_pixels_that_objects_share_are_counted_once_in_a_track() -> None:
    """Two equal objects of 6 pixels: the track shares its own 4 with them, not 8, and the union is taken for 12 of the 192."""
    truth = blocks((2, 2, 4, 3), (2, 2, 4, 3))
    xor, dice = union_costs(counts(blocks((2, 2, 3, 3)), truth), 192)
    assert xor == pytest.approx((4 + 12 - 8) / 192) and dice == pytest.approx(-9 / 17)
    everything = blocks((0, 0, 15, 11), (0, 0, 15, 11))
    xor, dice = union_costs(counts(everything[:1], everything), 192)
    assert xor == 0 and dice == -1


def test_boxes_end_at_the_last_pixel() -> None:
    truth = torch.cat([blocks((2, 3, 9, 8)), blocks((5, 1, 5, 9)), blocks((1, 4, 9, 4)), blocks(None)])
    objects = objects_of(truth)
    assert objects.visible[:, 0].tolist() == [True, False, False, False]
    torch.testing.assert_close(objects.boxes[0, 0], torch.tensor([5.5 / 16, 5.5 / 12, 7 / 16, 5 / 12]))
    assert objects.boxes[1:].abs().sum() == 0 and objects.pixels == 192


def test_the_union_s_box_is_that_of_its_mask() -> None:
    truth = random_clips(5)["truth"]
    for masks in truth:
        boxes, visible = objects_of(masks).union()
        whole = objects_of(masks.any(0)[None])
        torch.testing.assert_close(boxes, whole.boxes[0])
        assert torch.equal(visible, whole.visible[0])
    boxes, visible = objects_of(truth[0, :0]).union()
    assert boxes.tolist() == [[0.0] * 4] * 4 and not visible.any()


@pytest.mark.parametrize("mode", ["union_single", "multi_positive"])
@pytest.mark.parametrize("box_frames", ["all", "visible"])
def test_parts_of_a_step_add_up(mode: Any, box_frames: Any) -> None:
    settings = LossSettings(COSTS, WEIGHTS, mode, 0.3, box_frames)
    clips = random_clips(1)
    parts = [part(clips, slice(0, 1)), part(clips, slice(1, 3))]
    tracks = [p["output"].tracks for p in parts]
    sizes = [normalisers(p["objects"], p["overlaps"], own, own.any(1), settings)["num_boxes"] for p, own in zip(parts, tracks)]
    whole, pieces = of(clips, settings), [of(p, settings, divide_by={"num_boxes": sum(sizes)}) for p in parts]
    for term, value in whole.items():
        torch.testing.assert_close(sum(piece[term] for piece in pieces), value)


@pytest.mark.parametrize("mode", ["union_single", "multi_positive"])
def test_padding_changes_nothing(mode: Any) -> None:
    """Of tracks, of frames and of expressions, with values that would change everything."""
    settings = replace(SETTINGS, target_mode=mode)
    clips = random_clips(2, clips=2)
    output = clips["output"]
    b, t, n = output.logits.shape
    logits, boxes = torch.full((b + 1, t + 2, n + 3), 9.0), torch.full((b + 1, t + 2, n + 3, 4), 0.4)
    tracks, frames = torch.zeros(b + 1, n + 3, dtype=torch.bool), torch.zeros(b + 1, t + 2, dtype=torch.bool)
    logits[:b, :t, :n], boxes[:b, :t, :n], tracks[:b, :n], frames[:b, :t] = output
    tracks[b], frames[b] = True, True
    objects, overlaps = ([*clips[name], clips[name][0]] for name in ("objects", "overlaps"))
    counted = torch.tensor([True, True, False])
    padded = track_losses(TrackOutput(logits, boxes, tracks, frames), objects, overlaps, counted, settings)
    for term, value in of(clips, settings).items():
        torch.testing.assert_close(padded[term], value)


@pytest.mark.parametrize("mode", ["union_single", "multi_positive"])
@pytest.mark.parametrize("box_frames", ["all", "visible"])
def test_frames_without_annotation_do_not_count(mode: Any, box_frames: Any) -> None:
    settings = LossSettings(COSTS, WEIGHTS, mode, 0.5, box_frames)
    clips = random_clips(3, clips=1, frames=3)
    hidden = replace(clips["overlaps"][0], annotated=np.array([True, True, False]))
    kept = [0, 1]
    cut = Overlap(hidden.inter[:, :, kept], hidden.area[:, kept], hidden.gt_area[:, kept], np.ones(2, bool))
    logits, boxes, tracks, frames = clips["output"]
    objects = clips["objects"][0]
    few = {
        "output": TrackOutput(logits[:, kept], boxes[:, kept], tracks, frames[:, kept]),
        "objects": [Objects(objects.boxes[:, kept], objects.visible[:, kept], objects.pixels)],
        "overlaps": [cut],
    }
    expected = of(few, settings)
    for term, value in of({**clips, "overlaps": [hidden]}, settings).items():
        torch.testing.assert_close(value, expected[term])


def hand_made(tracks: Tensor, truth: Tensor) -> dict[str, Any]:
    """One expression whose tracks have the logit 0 and the boxes of their own masks."""
    objects = objects_of(tracks)
    n, t = tracks.shape[:2]
    output = TrackOutput(
        torch.zeros(1, t, n, requires_grad=True), objects.boxes.transpose(0, 1)[None],
        torch.ones(1, n, dtype=torch.bool), torch.ones(1, t, dtype=torch.bool),
    )  # fmt: skip
    return {"output": output, "objects": [objects_of(truth)], "overlaps": [counts(tracks, truth)]}


def positives(clips: dict[str, Any], settings: LossSettings) -> list[list[bool]]:
    """(T, N) of the first expression: where the gradient of a logit is negative, it is to grow."""
    logits = clips["output"].logits
    (gradient,) = torch.autograd.grad(of(clips, settings)["cls"], logits)
    return (gradient[0] < 0).tolist()


def test_every_track_that_covers_an_object_is_a_positive() -> None:
    """Track 0 has 2/3 of object 0, track 1 is object 1, 2 is both of them together, 3 lies elsewhere."""
    first, second = blocks((0, 0, 2, 5), (8, 0, 11, 5), frames=2)
    second = second.clone()
    second[1] = False
    tracks = torch.stack([blocks((0, 0, 1, 5), frames=2)[0], second, first | second, blocks((4, 8, 7, 11), frames=2)[0]])
    clips = hand_made(tracks, torch.stack([first, second]))
    quality = visible_iou(clips["overlaps"][0], clips["objects"][0].visible.numpy())
    # Frame 2 shows object 0 alone.
    both = np.mean([18 / 42, 1.0])
    np.testing.assert_allclose(quality, [[2 / 3, 0], [0, 1], [both, 24 / 42], [0, 0]])
    several = LossSettings(COSTS, WEIGHTS, "multi_positive", 0.5)
    assert positives(clips, several) == [[True, True, True, False], [True, False, True, False]]
    tracks_mask, counted = clips["output"].tracks, torch.ones(1, dtype=torch.bool)
    arguments = (clips["objects"], clips["overlaps"], tracks_mask, counted)
    # Track 0 and 2 stand for object 0, in both frames; track 1 for object 1, which one frame shows.
    assert normalisers(*arguments, several) == {"num_boxes": 5}
    assert positives(clips, replace(several, positive_iou=0.7)) == [[False, True, True, False], [False, False, True, False]]
    assert positives(clips, SETTINGS) == [[False, False, True, False]] * 2
    assert normalisers(*arguments, SETTINGS) == {"num_boxes": 2}
    assert of(clips)["l1"] == of(clips)["giou"].round(decimals=4) == 0
    # Boxes are those of the covered object: track 0 is one pixel narrower than object 0, track 2 wider than it in one frame.
    wide = (11 - 2) / 16
    by_hand = 2 * (0.5 + 1) / 16 + 1.5 * wide
    torch.testing.assert_close(of(clips, several)["l1"], torch.tensor(by_hand / 5))


def test_the_best_track_is_a_positive_where_none_covers_an_object() -> None:
    """Tracks 0 and 2 have 1/3 of an object each, 12/36 and 10/30; the first of equal ones."""
    truth = blocks((0, 0, 5, 5), (8, 0, 9, 9))
    settings = LossSettings(COSTS, WEIGHTS, "multi_positive", 0.9)
    third, other, same = (0, 0, 1, 5), (4, 0, 5, 8), (9, 0, 10, 9)
    assert positives(hand_made(blocks(third, other, same), truth), settings) == [[True, False, False]]
    assert positives(hand_made(blocks(other, (8, 0, 9, 4), third), truth), settings) == [[False, True, False]]
    # None overlaps: the one whose box is nearest to that of the union, as with union_single.
    apart = hand_made(blocks((12, 9, 15, 11), (6, 0, 7, 8)), truth)
    assert positives(apart, settings) == positives(apart, SETTINGS) == [[False, True]]


def test_a_track_that_is_no_candidate_is_no_positive() -> None:
    truth = blocks((0, 0, 5, 5))
    clips = hand_made(blocks((0, 0, 5, 5), (0, 0, 4, 5)), truth)
    clips["output"] = clips["output"]._replace(tracks=torch.tensor([[False, True]]))
    for mode in ("union_single", "multi_positive"):
        settings = replace(SETTINGS, target_mode=mode)
        assert positives(clips, settings) == [[False, True]]
        torch.testing.assert_close(of(clips, settings)["cls"], torch.tensor(0.25 * 0.25 * float(np.log(2))))


def test_boxes_in_frames_without_the_object_count_on_request() -> None:
    """The object is in the first of two frames; the track's box has width and height of 5/16 and 5/12 in both."""
    truth = blocks((0, 0, 5, 5), frames=2)
    truth[:, 1] = False
    clips = hand_made(blocks((0, 0, 5, 5), frames=2), truth)
    box = clips["output"].boxes[0, 1, 0]
    torch.testing.assert_close(of(clips)["l1"], box.sum())
    assert of(clips, replace(SETTINGS, box_frames="visible"))["l1"] == 0


@pytest.mark.parametrize("mode", ["union_single", "multi_positive"])
def test_an_expression_that_no_frame_shows_has_negatives_alone(mode: Any) -> None:
    settings = replace(SETTINGS, target_mode=mode)
    log2 = float(np.log(2))
    for truth in (blocks(None, frames=3), blocks(frames=3)):
        clips = hand_made(blocks((0, 0, 5, 5), (3, 3, 8, 8), frames=3), truth)
        terms = of(clips, settings)
        torch.testing.assert_close(terms["cls"], torch.tensor(6 * 0.75 * 0.25 * log2))
        assert terms["l1"] == terms["giou"] == 0


@pytest.mark.parametrize("mode", ["union_single", "multi_positive"])
def test_an_expression_without_candidates_has_no_loss(mode: Any) -> None:
    settings = replace(SETTINGS, target_mode=mode)
    clips = hand_made(blocks((0, 0, 5, 5)), blocks((0, 0, 5, 5)))
    clips["output"] = clips["output"]._replace(tracks=torch.zeros(1, 1, dtype=torch.bool))
    terms = of(clips, settings)
    assert all(value == 0 for value in terms.values())
    sizes = normalisers(clips["objects"], clips["overlaps"], clips["output"].tracks, torch.ones(1, dtype=torch.bool), settings)
    assert sizes == {"num_boxes": 0}
    terms["loss"].backward()
    assert clips["output"].logits.grad.abs().sum() == 0
