"""Rounds of propagating and filtering, with a SAM 2 whose tracks the tests define."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.sam2.backend import Prompt, Propagated, make_prompts
from rvos_cache.trackers.sam2.rounds import track_ground_truth, track_prompts, whole_masks
from rvos_cache.trackers.sam2.settings import GridSettings, PromptedSettings
from rvos_cache.types import GroundTruth

SIZE = (40, 60)
FRAMES = 6


class Still:
    """A SAM 2 whose objects stay where they were prompted, in every frame or in those for which `visible(prompt frame, t)`."""

    def __init__(self, visible: Callable[[int, int], bool] = lambda prompted, t: True, size: tuple[int, int] = SIZE) -> None:
        self.visible, self.size = visible, size
        self.calls: list[tuple[int, list[int]]] = []

    def propagate(self, t: int, prompts: Sequence[Prompt]) -> Propagated:
        self.calls.append((t, [p.area for p in prompts]))
        masks = RleMasks.from_bytes([[p.mask] for p in prompts], 1, self.size).dense()[:, 0]
        pixels = np.stack([np.stack([m & self.visible(t, s) for s in range(FRAMES)]) for m in masks])
        tokens = np.array([[[p.area, s] for s in range(FRAMES)] for p in prompts], np.float32)
        return Propagated(tokens, np.ones(pixels.shape[:2], np.float32), RleMasks.from_dense(pixels))


def box(x: int, y: int, width: int, height: int, size: tuple[int, int] = SIZE) -> NDArray[np.bool_]:
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def prompts_of(t: int, *masks: NDArray[np.bool_], keep_empty: bool = False) -> list[Prompt]:
    return make_prompts(RleMasks.from_dense(np.stack(masks)[:, None]), t, keep_empty=keep_empty)


def run(
    session: Still, prompts: list[Prompt], batch: int = 4, limit: int = 64, by_box: bool = False, **settings: object
) -> list[tuple[int, int]]:
    """(frame, area) of the prompt of each track, in order."""
    values = PromptedSettings.model_validate(settings)
    tracks = track_prompts(session, prompts, session.size, batch, limit, values, by_box)
    return [(track.prompt.frame, track.prompt.area) for track in tracks]


@pytest.mark.parametrize("rounds", ["sola", "ours"])
def test_the_largest_come_first_and_a_batch_is_of_one_frame(rounds: str) -> None:
    prompts = prompts_of(0, box(0, 0, 10, 10), box(20, 0, 8, 8)) + prompts_of(3, box(40, 0, 12, 12), box(40, 20, 5, 5))
    session = Still()
    assert run(session, prompts, batch=2, rounds=rounds) == [(3, 144), (3, 25), (0, 100), (0, 64)]
    assert session.calls == [(3, [144, 25]), (0, [100, 64])]


@pytest.mark.parametrize("rounds", ["sola", "ours"])
def test_a_prompt_that_a_track_covers_in_the_prompt_s_own_frame_is_dropped(rounds: str) -> None:
    big = box(0, 0, 10, 10)
    prompts = prompts_of(0, big) + prompts_of(2, box(0, 0, 10, 8), box(0, 0, 10, 7)) + prompts_of(4, box(30, 0, 9, 9))
    # IoU 0.8 is above the limit, 0.7 is not.
    assert run(Still(), prompts, rounds=rounds) == [(0, 100), (4, 81), (2, 70)]
    assert run(Still(), prompts, same_iou=0.69, rounds=rounds) == [(0, 100), (4, 81)]
    # Hidden in frame 2, the track covers nothing there; the two masks of that frame are near-duplicates of each other.
    hidden = Still(lambda prompted, t: t != 2 or prompted == 2)
    twin = [(2, 70)] if rounds == "sola" else []
    assert run(hidden, prompts, rounds=rounds) == [(0, 100), (4, 81), (2, 80), *twin]


def test_near_duplicates_of_one_batch_are_tracked_as_in_the_released_code_or_skipped() -> None:
    twins = prompts_of(1, box(0, 0, 10, 10), box(0, 0, 10, 9), box(30, 0, 5, 5))
    session = Still()
    assert run(session, twins) == [(1, 100), (1, 90), (1, 25)]
    assert session.calls == [(1, [100, 90, 25])]
    session = Still()
    assert run(session, twins, rounds="ours") == [(1, 100), (1, 25)]
    assert session.calls == [(1, [100, 25])]
    # In another batch, the smaller one is dropped by the released code too.
    assert run(Still(), twins, batch=1) == [(1, 100), (1, 25)]


def test_boxes_end_a_batch_at_the_first_prompt_of_another_frame() -> None:
    prompts = prompts_of(0, box(0, 0, 10, 10), box(0, 12, 8, 8)) + prompts_of(3, box(40, 0, 9, 9))
    grid, boxes = Still(), Still()
    assert run(grid, prompts) == [(0, 100), (0, 64), (3, 81)] and grid.calls == [(0, [100, 64]), (3, [81])]
    assert run(boxes, prompts, by_box=True) == [(0, 100), (3, 81), (0, 64)]
    assert boxes.calls == [(0, [100]), (3, [81]), (0, [64])]
    filled = Still()
    assert run(filled, prompts, by_box=True, rounds="ours") == [(0, 100), (0, 64), (3, 81)]


@pytest.mark.parametrize(("by_box", "sizes"), [(False, [4, 4, 2]), (True, [4, 3, 2, 1])])
def test_boxes_count_twice_towards_the_limit_within_a_batch(by_box: bool, sizes: list[int]) -> None:
    """Of 10: 4 (2 x 4 < 10), 3 (2 x 3 = 6 left), 2 (3 left), 1."""
    prompts = prompts_of(0, *(box(5 * (i % 12), 10 * (i // 12), 3, 3 + i % 4) for i in range(30)))
    session = Still()
    assert len(run(session, prompts, limit=10, by_box=by_box)) == 10
    assert [len(areas) for _, areas in session.calls] == sizes


@pytest.mark.parametrize("rounds", ["sola", "ours"])
@pytest.mark.parametrize("by_box", [False, True])
@pytest.mark.parametrize("limit", [1, 3, 5])
def test_the_limit_of_tracks_is_reached_exactly(limit: int, by_box: bool, rounds: str) -> None:
    prompts = prompts_of(0, *(box(10 * i, 0, 5 + i, 5) for i in range(5)))
    session = Still()
    assert len(run(session, prompts, batch=2, limit=limit, by_box=by_box, rounds=rounds)) == limit
    assert sum(len(areas) for _, areas in session.calls) == limit


def test_ours_depends_on_neither_the_order_of_prompts_nor_equal_areas() -> None:
    masks = [box(x, y, 6, 5) for x, y in itertools.product((0, 4, 8, 20), (0, 2, 20))]
    prompts = prompts_of(0, *masks) + prompts_of(2, *(np.roll(m, 1, 1) for m in masks[::2]))
    settings = PromptedSettings(rounds="ours")
    expected = track_prompts(Still(), prompts, SIZE, 4, 64, settings)
    for seed in range(5):
        shuffled = random.Random(seed).sample(prompts, len(prompts))
        tracks = track_prompts(Still(), shuffled, SIZE, 4, 64, settings)
        assert [t.prompt for t in tracks] == [t.prompt for t in expected]
    assert 1 < len(expected) < len(prompts)


def test_the_released_code_takes_equal_areas_in_the_order_given() -> None:
    prompts = prompts_of(0, box(20, 0, 6, 5), box(0, 0, 6, 5), box(40, 0, 5, 6))
    assert [t.prompt for t in track_prompts(Still(), prompts, SIZE, 4, 64, PromptedSettings())] == prompts


def test_tracks_belong_to_their_prompts() -> None:
    prompts = prompts_of(0, box(0, 0, 10, 10), box(20, 0, 8, 8), box(40, 0, 9, 9))
    for track in track_prompts(Still(), prompts, SIZE, 4, 64, PromptedSettings()):
        assert track.tokens[:, 0].tolist() == [track.prompt.area] * FRAMES and track.masks.shape == (1, FRAMES)
        assert track.masks.bytes_at(0, 3) == track.prompt.mask


def test_no_prompt_gives_no_track_and_no_call() -> None:
    session = Still()
    assert run(session, []) == [] and session.calls == []


def small(mask: NDArray[np.bool_], size: tuple[int, int], mode: str) -> NDArray[np.bool_]:
    return (interpolate(torch.tensor(mask).float()[None, None], size, mode=mode)[0, 0] > 0.5).numpy()


def plain_rounds(
    masks: list[tuple[int, NDArray[np.bool_]]], batch: int, by_box: bool, size: tuple[int, int]
) -> list[tuple[int, int]]:
    """The released scripts' rules on masks (frame, pixels) of objects that do not move, one pair of masks at a time."""
    target = (540, 960) if size[0] < size[1] else (960, 540)
    order = sorted(range(len(masks)), key=lambda i: -masks[i][1].sum())
    prompts = {i: small(masks[i][1], target, "nearest") for i in order}
    tracks = {i: small(masks[i][1], target, "bilinear") for i in order}
    out: list[tuple[int, int]] = []
    while order:
        chosen: list[int] = []
        for i in order:
            if len(chosen) == batch or (by_box and masks[i][0] != masks[order[0]][0]):
                break
            if masks[i][0] == masks[order[0]][0]:
                chosen.append(i)
        out += [(masks[i][0], int(masks[i][1].sum())) for i in chosen]
        order = [
            i for i in order
            if i not in chosen and all((tracks[k] & prompts[i]).sum() <= 0.7 * (tracks[k] | prompts[i]).sum() for k in chosen)
        ]  # fmt: skip
    return out


@pytest.mark.parametrize("size", [(36, 64), (67, 41), (48, 48), (720, 1280)])
@pytest.mark.parametrize("by_box", [False, True])
def test_sets_of_tracks_are_those_of_the_released_rules(size: tuple[int, int], by_box: bool) -> None:
    generator = np.random.default_rng(0)
    masks: list[tuple[int, NDArray[np.bool_]]] = []
    for t in (0, 2, 4):
        for _ in range(8):
            y, x = (int(generator.integers(0, n // 3)) for n in size)
            height, width = (int(generator.integers(n // 4, n // 2)) for n in size)
            masks.append((t, box(x, y, width, height, size)))
    prompts = [p for t in (0, 2, 4) for p in prompts_of(t, *(m for s, m in masks if s == t))]
    tracks = run(Still(size=size), prompts, batch=2, limit=99, by_box=by_box, iou_size="540x960")
    assert tracks == plain_rounds(masks, 2, by_box, size) and 1 < len(tracks) < len(prompts)


def test_masks_are_compared_at_the_size_of_the_released_code() -> None:
    """7 rows of 10 are an IoU of 0.7, which is not above 0.7; at 540 rows instead of 40 they are 95 of 135."""
    prompts = prompts_of(0, box(0, 0, 10, 10)) + prompts_of(2, box(0, 0, 10, 7))
    assert run(Still(), prompts) == [(0, 100), (2, 70)]
    assert run(Still(), prompts, iou_size="540x960") == [(0, 100)]
    assert run(Still(), prompts, iou_size="540x960", same_iou=0.71) == [(0, 100), (2, 70)]


def test_tracks_are_resized_bilinearly_and_prompts_by_nearest_pixels() -> None:
    """Of 1080 x 1920 every second pixel of each axis is a quarter of an area: no track, but a whole prompt."""
    size = (1080, 1920)
    dots, solid = np.zeros(size, bool), box(0, 0, 300, 400, size)
    dots[0:400:2, 0:300:2] = True
    # First the solid one, whose track equals the resized dots; then the dots, which have lost their pixels as a track.
    assert run(Still(size=size), prompts_of(0, solid) + prompts_of(2, dots), iou_size="540x960") == [(0, 120_000)]
    assert run(Still(size=size), prompts_of(0, solid) + prompts_of(2, dots)) == [(0, 120_000), (2, 30_000)]
    solid[100:] = False  # 30,000 pixels too; the dots come first
    prompts = prompts_of(0, dots) + prompts_of(2, solid)
    assert run(Still(size=size), prompts, iou_size="540x960") == [(0, 30_000), (2, 30_000)]


def test_empty_masks_of_boxes_are_tracked_unless_a_track_is_hidden_in_their_frame() -> None:
    """Two masks without pixels have an IoU of 1 in the released code."""
    some, none = box(0, 0, 9, 9), box(0, 0, 0, 0)
    prompts = prompts_of(0, some) + prompts_of(2, none, keep_empty=True) + prompts_of(4, none, keep_empty=True)
    assert run(Still(), prompts, by_box=True) == [(0, 81), (2, 0)]
    assert run(Still(lambda prompted, t: t == prompted), prompts, by_box=True) == [(0, 81)]
    assert run(Still(), prompts, by_box=True, rounds="ours") == [(0, 81), (2, 0), (4, 0)]


def test_an_empty_mask_is_no_prompt_unless_asked_for() -> None:
    masks = (box(0, 0, 0, 0), box(3, 2, 4, 5))
    assert [(p.frame, p.area, p.box) for p in prompts_of(4, *masks)] == [(4, 20, (3, 2, 7, 7))]
    assert [p.area for p in prompts_of(4, *masks, keep_empty=True)] == [0, 20]


def test_the_box_of_a_prompt_is_stored_clipped_to_the_frame() -> None:
    masks = RleMasks.from_dense(np.stack([box(0, 0, 9, 9)])[:, None])
    assert make_prompts(masks, 0, np.array([[-4.5, 2, 70, 50]]))[0].box == (0, 2, 60, 40)


def test_parts_of_larger_masks_are_dropped() -> None:
    whole, inside, edge, outside = box(0, 0, 20, 20), box(2, 2, 5, 5), box(13, 0, 10, 10), box(14, 10, 10, 10)
    masks = RleMasks.from_dense(np.stack([outside, inside, whole, edge])[:, None])
    # 70 of the 100 pixels of `edge` lie in the whole, which is not more than 0.7; of `outside` 60.
    assert whole_masks(masks, 0.7).area()[:, 0].tolist() == [400, 100, 100]
    assert whole_masks(masks, 0.69).area()[:, 0].tolist() == [400, 100]
    assert whole_masks(RleMasks.empty(0, 1, SIZE), 0.7).shape == (0, 1)
    assert whole_masks(RleMasks.empty(2, 1, SIZE), 0.7).shape == (0, 1)


def test_a_part_of_a_dropped_part_is_compared_with_kept_masks_only() -> None:
    # b is part of a; c lies in b, but with no more than half of it in a.
    a, b, c = box(0, 0, 20, 20), box(14, 0, 8, 20), box(18, 0, 4, 20)
    assert whole_masks(RleMasks.from_dense(np.stack([a, b, c])[:, None]), 0.7).area()[:, 0].tolist() == [400, 80]


def make_truth(*objects: Sequence[NDArray[np.bool_] | None], annotated: Sequence[int] = range(FRAMES)) -> GroundTruth:
    dense = np.array([[box(0, 0, 0, 0) if m is None else m for m in masks] for masks in objects])
    return GroundTruth(
        tuple(str(i) for i in range(len(objects))), RleMasks.from_dense(dense), np.isin(np.arange(FRAMES), annotated)
    )


def run_truth(session: Still, truth: GroundTruth, batch: int = 4) -> list[tuple[int, int]]:
    return [(t.prompt.frame, t.prompt.area) for t in track_ground_truth(session, truth, batch, 0.5)]


def test_objects_are_prompted_where_most_of_them_is_visible_and_never_when_hidden() -> None:
    less, more = box(0, 0, 5, 5), box(0, 0, 6, 5)
    truth = make_truth([None, less, less, more, more, None], [None] * 6, [more] * 6)
    session = Still()
    assert run_truth(session, truth) == [(3, 30), (0, 30)]
    assert sorted(session.calls) == [(0, [30]), (3, [30])]


def test_frames_without_annotation_prompt_nothing() -> None:
    less, more = box(0, 0, 5, 5), box(0, 0, 6, 5)
    assert run_truth(Still(), make_truth([more, less, less, more, more, more], annotated=[1, 2])) == [(1, 25)]
    assert run_truth(Still(), make_truth([more] * 6, annotated=[])) == []


def test_an_object_whose_track_misses_its_first_frame_is_prompted_there_too() -> None:
    first, later = box(0, 0, 5, 5), box(30, 20, 6, 6)
    truth = make_truth([None, first, first, later, later, later], [box(0, 0, 9, 9)] * 6)
    # The first object's second track follows its first one.
    assert run_truth(Still(), truth) == [(3, 36), (1, 25), (0, 81)]
    assert run_truth(Still(), make_truth([None, first, first, box(0, 0, 6, 5), None, None])) == [(3, 30)]


def test_objects_of_one_frame_are_prompted_in_batches() -> None:
    session = Still()
    assert run_truth(session, make_truth(*([box(8 * i, 0, 3 + i, 4)] * 6 for i in range(5))), batch=2) == [
        (0, 4 * (3 + i)) for i in range(5)
    ]
    assert session.calls == [(0, [12, 16]), (0, [20, 24]), (0, [28])]


@pytest.mark.usefixtures("on_cpu")
def test_defaults_are_those_of_the_specification() -> None:
    values = GridSettings()
    assert (values.prompt_every, values.same_iou, values.batch, values.long_batch, values.long_frames) == (4, 0.7, 4, 2, 200)
    assert (values.points_per_side, values.predicted_iou, values.stability, values.stability_offset) == (32, 0.8, 0.95, 1.0)
    assert (values.nms_iou, values.part, values.max_tracks) == (0.7, 0.7, 64)
    assert (values.rounds, values.prompt_features) == ("sola", "image")


@pytest.mark.parametrize(("gigabytes", "batches"), [(80, (16, 16)), (16, (8, 8)), (8, (4, 2))])
def test_the_memory_of_a_gpu_sets_the_batch_unless_it_is_given(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, batches: tuple[int, int]
) -> None:
    monkeypatch.setattr("rvos_cache.system.device.device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=gigabytes * 10**9))
    values = GridSettings()
    assert (values.batch, values.long_batch) == batches
    assert GridSettings(batch=3, long_batch=1).model_dump()["batch"] == 3
