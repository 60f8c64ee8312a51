"""The parts of DVIS++ behind its segmenter against recorded values of the released modules, and their invariances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from golden_dvis import TOLERANCE, error, golden, released_tensors
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.trackers.dvis import DvisHead, ReferringTracker, ReidQueries, TemporalRefiner, VitAdapter, track_scores
from rvos_cache.trackers.dvis.adapter import AdapterSizes
from rvos_cache.trackers.dvis.linking import link_frames
from rvos_cache.trackers.dvis.referring import TrackedQueries

HEAD = ("sem_seg_head.", "tracker.", "refiner.")
ROUNDING = 5e-5
"""Of the same sums in two orders: each lies within 1e-5 of float64 on the machines that were tried, for values of up to 5."""


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
    # 0.7 GB.
    released_tensors.cache_clear()


@pytest.fixture(scope="module")
def head() -> DvisHead:
    return DvisHead.from_official(released_tensors(*HEAD))


def inputs() -> tuple[Tensor, Tensor]:
    return golden()["input.queries"], golden()["input.raw"]


@pytest.fixture(scope="module")
def tracked(head: DvisHead) -> TrackedQueries:
    tracked: TrackedQueries = head.tracker(*inputs())
    return tracked


def test_queries_and_raw_are_the_released_ones(head: DvisHead) -> None:
    queries, raw = head.reid(golden()["input.reid.q"])
    assert error("output.reid.queries", queries) < TOLERANCE
    assert error("output.reid.raw", raw) < TOLERANCE


def test_tracks_and_their_order_are_the_released_ones(tracked: TrackedQueries) -> None:
    assert torch.equal(tracked.order, golden()["output.tracker.order"])
    assert error("output.tracker.embeds", tracked.embeds) < TOLERANCE
    assert error("output.tracker.logits", tracked.logits) < TOLERANCE


def test_refined_tracks_are_the_released_ones(head: DvisHead, tracked: TrackedQueries) -> None:
    refined = head.refiner(tracked.embeds, inputs()[1])
    for name in ("embeds", "logits", "mask_embed"):
        assert error(f"output.refiner.{name}", getattr(refined, name)) < TOLERANCE, name
    masks = torch.einsum("btnc,btchw->bnthw", refined.mask_embed, golden()["input.mask_features"])
    assert error("output.refiner.P_mask", masks) < TOLERANCE
    again = head.refiner.heads(refined.embeds)
    assert torch.equal(again.logits, refined.logits) and torch.equal(again.mask_embed, refined.mask_embed)


def test_a_video_of_one_frame_is_the_released_one(head: DvisHead) -> None:
    queries, raw = (x[:, :1] for x in inputs())
    embeds = head.tracker(queries, raw).embeds
    refined = head.refiner(embeds, raw)
    assert error("output.one_frame.tracker.embeds", embeds) < TOLERANCE
    assert error("output.one_frame.refiner.embeds", refined.embeds) < TOLERANCE
    assert error("output.one_frame.refiner.logits", refined.logits) < TOLERANCE


def test_scores_are_the_released_ones() -> None:
    logits = [golden()[f"input.scores.{part}_logits"][None] for part in ("refiner", "tracker")]
    assert error("output.scores", track_scores(*logits)[0]) < TOLERANCE


@pytest.mark.parametrize("size", [1, 4])
def test_windows_with_the_state_carried_on_change_nothing(head: DvisHead, tracked: TrackedQueries, size: int) -> None:
    parts: list[TrackedQueries] = []
    for queries, raw in zip(*(x.split(size, 1) for x in inputs()), strict=True):
        parts.append(head.tracker(queries, raw, parts[-1].state if parts else None))
    assert torch.equal(torch.cat([part.order for part in parts], 1), tracked.order)
    assert torch.allclose(torch.cat([part.embeds for part in parts], 1), tracked.embeds, atol=ROUNDING)
    assert torch.allclose(torch.cat([part.logits for part in parts], 1), tracked.logits, atol=ROUNDING)
    assert torch.allclose(parts[-1].state.embeds, tracked.state.embeds, atol=ROUNDING)


def test_each_video_of_a_batch_is_tracked_as_if_alone(head: DvisHead, tracked: TrackedQueries) -> None:
    queries, raw = inputs()
    assert not torch.equal(tracked.order[0], tracked.order[1])
    together = head.refiner(tracked.embeds, raw)
    for b in range(2):
        alone = head.tracker(queries[b : b + 1], raw[b : b + 1])
        assert torch.equal(alone.order[0], tracked.order[b])
        assert torch.allclose(alone.embeds[0], tracked.embeds[b], atol=ROUNDING)
        refined = head.refiner(alone.embeds, raw[b : b + 1])
        assert torch.allclose(refined.embeds[0], together.embeds[b], atol=ROUNDING)
        assert torch.allclose(refined.logits[0], together.logits[b], atol=ROUNDING)


def test_the_order_of_a_later_frames_queries_does_not_matter(head: DvisHead, tracked: TrackedQueries) -> None:
    queries, raw = (x[:, :3].clone() for x in inputs())
    permutation = torch.randperm(queries.shape[2], generator=torch.Generator().manual_seed(0))
    queries[:, 2], raw[:, 2] = queries[:, 2, permutation], raw[:, 2, permutation]
    assert torch.allclose(head.tracker(queries, raw).embeds, tracked.embeds[:, :3], atol=ROUNDING)


def test_linked_frames_are_the_assignments_of_the_tracker(tracked: TrackedQueries) -> None:
    assert torch.equal(link_frames(inputs()[0]), tracked.order)


@pytest.fixture(scope="module")
def adapter() -> VitAdapter:
    return VitAdapter.from_official(released_tensors("backbone."))


def test_the_maps_of_vit_adapter_are_the_released_ones(adapter: VitAdapter) -> None:
    images = golden()["input.adapter.images"]
    maps = adapter(images)
    for stride, stride_map in zip((4, 8, 16, 32), maps, strict=True):
        assert stride_map.shape[2:] == (64 // stride, 96 // stride)
        assert error(f"output.adapter.stride{stride}", stride_map) < TOLERANCE, stride
    for together, alone in zip(maps, adapter(images[1:]), strict=True):
        assert torch.allclose(together[1:], alone, atol=1e-4)


def test_vit_adapter_takes_whole_cells_and_its_own_tensors(adapter: VitAdapter) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        adapter(torch.zeros(1, 3, 48, 64))
    tensors = released_tensors("backbone.")
    name = "backbone.interactions.3.extra_extractors.1.ffn.dwconv.dwconv.bias"
    with pytest.raises(InputError, match=f"'{name}' is missing"):
        VitAdapter.from_official({n: t for n, t in tensors.items() if n != name})


def test_the_released_sizes_have_the_released_numbers_of_parameters(head: DvisHead) -> None:
    """Those of the released modules, whose tracker has two parts more that are not read."""

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert (count(head.reid.reid_embed), count(head.refiner)) == (197_376, 44_800_795)
    assert sum(tensor.numel() for name, tensor in released_tensors(*HEAD).items() if name.startswith("tracker.")) == 26_762_266
    assert count(head.tracker) == 26_762_266 - 2 * 512 * 512 - 512 * 256 - 2 * 512 - 256 - 256 * 256 - 256
    with torch.device("meta"):
        large = VitAdapter(
            AdapterSizes(
                width=1024, blocks=24, hidden=4096, positions=37 * 37, stem=64, groups=4, extra=2, heads=16, convolved=256
            )
        )
    assert round(count(large) / 1e6, 1) == 327.5


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (ReidQueries, "sem_seg_head.predictor.reid_embed.layers.1.bias"),
        (ReferringTracker, "tracker.ref_proj.layers.1.bias"),
        (TemporalRefiner, "refiner.mask_embed.layers.1.bias"),
    ],
)
def test_a_missing_or_unknown_or_misshapen_tensor_is_named(part: Any, name: str) -> None:
    tensors = released_tensors(*HEAD)
    unknown = name.replace("layers.1.bias", "memory")
    for change, message in (
        ({name: None}, f"'{name}' is missing"),
        ({name: tensors[name][:-1]}, f"'{name}' is .* expected"),
        ({unknown: torch.ones(2)}, f"'{unknown}' is not one of a DVIS"),
    ):
        with pytest.raises(InputError, match=message):
            part.from_official({n: t for n, t in {**tensors, **change}.items() if t is not None})


def test_parts_of_two_checkpoints_are_refused() -> None:
    tensors = dict(released_tensors(*HEAD))
    tensors["refiner.class_embed.weight"], tensors["refiner.class_embed.bias"] = torch.ones(41, 512), torch.ones(41)
    with pytest.raises(InputError, match="the tracker has 25 classes, the refiner 40"):
        DvisHead.from_official(tensors)


def test_inputs_of_other_channels_or_without_frames_are_refused(head: DvisHead) -> None:
    queries, raw = inputs()
    for part in (head.tracker, head.refiner):
        for bad in ((queries[..., :256], raw[..., :256]), (queries[:, :0], raw[:, :0]), (queries, raw[:, :2])):
            with pytest.raises(ValueError, match=r"\(B, T, N, 512\) with T > 0"):
                part(*bad)
