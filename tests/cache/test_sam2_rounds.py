"""Rounds of propagating and filtering, with a SAM 2 that answers what a test says."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.sam2.backend import Prompt, Propagated, prompts_of
from rvos_cache.trackers.sam2.rounds import answers, rounds, whole_masks
from rvos_cache.trackers.sam2.settings import GridSettings, PromptedSettings
from rvos_cache.types import GroundTruth

SIZE = (40, 60)
FRAMES = 6


class Still:
    """A SAM 2 whose objects stay where they were prompted, in every frame or in those that `shown` says."""

    def __init__(self, shown: Callable[[int, int], bool] = lambda prompted, t: True) -> None:
        self.shown = shown
        self.asked: list[tuple[int, list[int]]] = []
        self.names: dict[bytes, int] = {}

    def propagate(self, t: int, prompts: Sequence[Prompt]) -> Propagated:
        self.asked.append((t, [p.area for p in prompts]))
        drawn = RleMasks.from_bytes([[p.mask] for p in prompts], 1, SIZE).dense()[:, 0]
        pixels = np.stack([np.stack([m & self.shown(t, s) for s in range(FRAMES)]) for m in drawn])
        tokens = np.array([[[p.area, s] for s in range(FRAMES)] for p in prompts], np.float32)
        return Propagated(tokens, np.ones(pixels.shape[:2], np.float32), RleMasks.from_dense(pixels))


def box(x: int, y: int, width: int, height: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def asked(t: int, *masks: NDArray[np.bool_]) -> list[Prompt]:
    return prompts_of(RleMasks.from_dense(np.stack(masks)[:, None]), t)


def followed(session: Still, prompts: list[Prompt], batch: int = 4, limit: int = 64, **settings: object) -> list[tuple[int, int]]:
    """(frame, area) of the prompt of each track, in order."""
    made = PromptedSettings.model_validate(settings)
    return [(f.prompt.frame, f.prompt.area) for f in rounds(session, prompts, SIZE, batch, limit, made)]


def test_the_largest_come_first_and_a_batch_is_of_one_frame() -> None:
    prompts = asked(0, box(0, 0, 10, 10), box(20, 0, 8, 8)) + asked(3, box(40, 0, 12, 12), box(40, 20, 5, 5))
    session = Still()
    assert followed(session, prompts, batch=2) == [(3, 144), (3, 25), (0, 100), (0, 64)]
    assert session.asked == [(3, [144, 25]), (0, [100, 64])]


def test_a_prompt_that_a_track_meets_in_the_prompt_s_own_frame_is_dropped() -> None:
    big = box(0, 0, 10, 10)
    prompts = asked(0, big) + asked(2, box(0, 0, 10, 8), box(0, 0, 10, 7)) + asked(4, box(30, 0, 9, 9))
    # IoU 0.8 is above the limit, 0.7 is not.
    assert followed(Still(), prompts) == [(0, 100), (4, 81), (2, 70)]
    assert followed(Still(), prompts, same_iou=0.69) == [(0, 100), (4, 81)]
    # Hidden in frame 2, the track says nothing of what is there.
    assert followed(Still(lambda prompted, t: t != 2 or prompted == 2), prompts) == [(0, 100), (4, 81), (2, 80)]


def test_two_prompts_of_one_object_are_not_followed_side_by_side() -> None:
    twins = asked(1, box(0, 0, 10, 10), box(0, 0, 10, 9), box(30, 0, 5, 5))
    session = Still()
    assert followed(session, twins) == [(1, 100), (1, 25)]
    assert session.asked == [(1, [100, 25])]


@pytest.mark.parametrize("limit", [1, 3, 5])
def test_the_limit_of_tracks_is_met_exactly(limit: int) -> None:
    prompts = asked(0, *(box(10 * i, 0, 5 + i, 5) for i in range(5)))
    session = Still()
    assert len(followed(session, prompts, batch=2, limit=limit)) == limit
    assert sum(len(areas) for _, areas in session.asked) == limit


def test_the_order_of_prompts_and_equal_areas_change_nothing() -> None:
    masks = [box(x, y, 6, 5) for x, y in itertools.product((0, 4, 8, 20), (0, 2, 20))]
    prompts = asked(0, *masks) + asked(2, *(np.roll(m, 1, 1) for m in masks[::2]))
    wanted = rounds(Still(), prompts, SIZE, 4, 64, PromptedSettings())
    for seed in range(5):
        mixed = random.Random(seed).sample(prompts, len(prompts))
        found = rounds(Still(), mixed, SIZE, 4, 64, PromptedSettings())
        assert [f.prompt for f in found] == [f.prompt for f in wanted]
    assert 1 < len(wanted) < len(prompts)


def test_tracks_belong_to_their_prompts() -> None:
    prompts = asked(0, box(0, 0, 10, 10), box(20, 0, 8, 8), box(40, 0, 9, 9))
    for track in rounds(Still(), prompts, SIZE, 4, 64, PromptedSettings()):
        assert track.tokens[:, 0].tolist() == [track.prompt.area] * FRAMES and track.masks.shape == (1, FRAMES)
        assert track.masks.bytes_at(0, 3) == track.prompt.mask


def test_no_prompt_gives_no_track_and_asks_for_none() -> None:
    session = Still()
    assert followed(session, []) == [] and session.asked == []


def test_masks_are_compared_in_the_pixels_of_the_released_code() -> None:
    """7 rows of 10 are an IoU of 0.7, which is not above 0.7; at 540 rows instead of 40 they are 95 of 135."""
    prompts = asked(0, box(0, 0, 10, 10)) + asked(2, box(0, 0, 10, 7))
    assert followed(Still(), prompts) == [(0, 100), (2, 70)]
    assert followed(Still(), prompts, iou_size="540x960") == [(0, 100)]
    assert followed(Still(), prompts, iou_size="540x960", same_iou=0.71) == [(0, 100), (2, 70)]


def test_an_empty_mask_is_no_prompt() -> None:
    found = asked(4, box(0, 0, 0, 0), box(3, 2, 4, 5))
    assert [(p.frame, p.area, p.box) for p in found] == [(4, 20, (3, 2, 7, 7))]


def test_the_box_that_was_asked_with_is_kept_within_the_frame() -> None:
    masks = RleMasks.from_dense(np.stack([box(0, 0, 9, 9)])[:, None])
    assert prompts_of(masks, 0, np.array([[-4.5, 2, 70, 50]]))[0].box == (0, 2, 60, 40)


def test_parts_of_larger_masks_are_dropped() -> None:
    whole, inside, edge, out = box(0, 0, 20, 20), box(2, 2, 5, 5), box(13, 0, 10, 10), box(14, 10, 10, 10)
    masks = RleMasks.from_dense(np.stack([out, inside, whole, edge])[:, None])
    # `edge` lies in the whole with 70 of 100 pixels, which is not more than 0.7; `out` with 60.
    kept = whole_masks(masks, 0.7)
    assert kept.area()[:, 0].tolist() == [400, 100, 100]
    assert whole_masks(masks, 0.69).area()[:, 0].tolist() == [400, 100]
    assert whole_masks(RleMasks.empty(0, 1, SIZE), 0.7).shape == (0, 1)
    assert whole_masks(RleMasks.empty(2, 1, SIZE), 0.7).shape == (0, 1)


def test_a_part_of_what_is_a_part_itself_is_judged_by_what_is_kept() -> None:
    # b is part of a; c lies in b, but with no more than half of it in a.
    a, b, c = box(0, 0, 20, 20), box(14, 0, 8, 20), box(18, 0, 4, 20)
    assert whole_masks(RleMasks.from_dense(np.stack([a, b, c])[:, None]), 0.7).area()[:, 0].tolist() == [400, 80]


def truth(*objects: Sequence[NDArray[np.bool_] | None], annotated: Sequence[int] = range(FRAMES)) -> GroundTruth:
    dense = np.array([[box(0, 0, 0, 0) if m is None else m for m in masks] for masks in objects])
    marked = np.isin(np.arange(FRAMES), annotated)
    return GroundTruth(tuple(str(i) for i in range(len(objects))), RleMasks.from_dense(dense), marked)


def prompted(session: Still, given: GroundTruth, batch: int = 4) -> list[tuple[int, int]]:
    return [(f.prompt.frame, f.prompt.area) for f in answers(session, given, batch, 0.5)]


def test_objects_are_prompted_where_most_of_them_is_seen_and_never_when_they_are_hidden() -> None:
    small, large = box(0, 0, 5, 5), box(0, 0, 6, 5)
    given = truth([None, small, small, large, large, None], [None] * 6, [large] * 6)
    session = Still()
    assert prompted(session, given) == [(3, 30), (0, 30)]
    assert sorted(session.asked) == [(0, [30]), (3, [30])]


def test_frames_without_annotation_prompt_nothing() -> None:
    small, large = box(0, 0, 5, 5), box(0, 0, 6, 5)
    assert prompted(Still(), truth([large, small, small, large, large, large], annotated=[1, 2])) == [(1, 25)]
    assert prompted(Still(), truth([large] * 6, annotated=[])) == []


def test_an_object_that_its_track_does_not_meet_at_first_is_prompted_there_too() -> None:
    here, there = box(0, 0, 5, 5), box(30, 20, 6, 6)
    given = truth([None, here, here, there, there, there], [box(0, 0, 9, 9)] * 6)
    session = Still()
    # The first object's second track stands beside its first one.
    assert prompted(session, given) == [(3, 36), (1, 25), (0, 81)]
    assert prompted(Still(), truth([None, here, here, box(0, 0, 6, 5), None, None])) == [(3, 30)]


def test_objects_of_one_frame_are_prompted_in_batches() -> None:
    session = Still()
    assert prompted(session, truth(*([box(8 * i, 0, 3 + i, 4)] * 6 for i in range(5))), batch=2) == [
        (0, 4 * (3 + i)) for i in range(5)
    ]
    assert session.asked == [(0, [12, 16]), (0, [20, 24]), (0, [28])]


def test_defaults_are_those_of_the_specification() -> None:
    made = GridSettings()
    assert (made.prompt_every, made.same_iou, made.batch, made.long_batch, made.long_frames) == (4, 0.7, 4, 2, 200)
    assert (made.points_per_side, made.predicted_iou, made.stability, made.stability_offset) == (32, 0.8, 0.95, 1.0)
    assert (made.nms_iou, made.part, made.max_tracks) == (0.7, 0.7, 64)
