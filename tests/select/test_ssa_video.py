"""SSA's video part by itself: linking, and trajectories where tracks are absent and clips are padded."""

from __future__ import annotations

from typing import Any

import torch

from rvos_select.selectors.ssa.video import Presence, VideoPart


def part(**switches: Any) -> VideoPart:
    torch.manual_seed(1)
    return VideoPart(32, 16, 2, slots=5, **switches).eval()


@torch.inference_mode()
def test_linking_undoes_the_order_of_a_frames_queries() -> None:
    video, x = part(), torch.randn(2, 4, 5, 32)
    linked, order = video.link(x)
    assert torch.equal(order[:, 0], torch.arange(5).expand(2, 5))
    shuffled = x.clone()
    shuffled[:, 2] = x[:, 2, torch.tensor([3, 0, 4, 1, 2])]
    assert torch.equal(video.link(shuffled)[0], linked)
    assert torch.equal(video.link(x[:, :1])[0], x[:, :1])
    assert torch.equal(x.gather(2, order[..., None].expand_as(x)), linked)
    unlinked, order = part(link=False).link(shuffled)
    assert torch.equal(unlinked, shuffled) and torch.equal(order, torch.arange(5).expand(2, 4, 5))


@torch.inference_mode()
def test_linking_survives_queries_that_are_zero_or_nan() -> None:
    x = torch.randn(1, 3, 5, 32)
    x[0, 1, 2] = 0
    x[0, 2, 0] = torch.nan
    _, order = part().link(x)
    assert torch.equal(order.sort(-1).values, torch.arange(5).expand(1, 3, 5))


@torch.inference_mode()
def test_padded_frames_change_nothing() -> None:
    video, x, text = part(), torch.randn(1, 6, 5, 32), torch.randn(1, 6, 32)
    x[:, 4:], text[:, 4:] = 100.0, 100.0
    frames = torch.arange(6)[None] < 4
    presence = Presence(frames, frames[..., None].expand(1, 6, 5))
    enhanced = video.enhance(x, presence)
    q_v, weights = video.ensemble(enhanced, presence)
    own = video.enhance(x[:, :4])
    own_q_v, own_weights = video.ensemble(own)
    assert torch.allclose(enhanced[:, :4], own, atol=1e-6)
    assert torch.allclose(q_v, own_q_v, atol=1e-6) and torch.allclose(weights[:, :4], own_weights, atol=1e-6)
    assert not weights[:, 4:].any() and torch.allclose(weights.sum(1), torch.ones(1, 5))
    decoded = video.decode(q_v, enhanced, text, presence=presence)
    assert torch.allclose(decoded, video.decode(own_q_v, own, text[:, :4]), atol=1e-5)
    first = part(ensemble="text")
    assert torch.allclose(first.first_queries(enhanced, text, presence), first.first_queries(own, text[:, :4]), atol=1e-6)


@torch.inference_mode()
def test_a_track_that_is_absent_from_all_frames_has_equal_weights() -> None:
    x = torch.randn(1, 4, 5, 32)
    tracks = torch.ones(1, 4, 5, dtype=torch.bool)
    tracks[:, :, 2] = False
    tracks[:, 1, 0] = False
    _, weights = part().ensemble(x, Presence(torch.ones(1, 4, dtype=torch.bool), tracks))
    assert torch.allclose(weights[0, :, 2], torch.full((4,), 0.25))
    assert float(weights[0, 1, 0]) == 0
    frames = torch.tensor([[True, True, True, False]])
    _, padded = part().ensemble(x, Presence(frames, tracks & frames[..., None]))
    assert torch.allclose(padded[0, :, 2], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]))


@torch.inference_mode()
def test_absent_frames_of_a_trajectory_are_not_read_by_those_beside_them() -> None:
    """Neither by the convolutions nor by the attention."""
    video, x, other = part(), torch.randn(1, 6, 5, 32), torch.randn(1, 6, 5, 32)
    tracks = torch.ones(1, 6, 5, dtype=torch.bool)
    tracks[:, 2:4, 1] = tracks[:, 0, 3] = False
    presence = Presence(torch.ones(1, 6, dtype=torch.bool), tracks)
    changed = torch.where(tracks[..., None], x, other)
    assert torch.allclose(video.enhance(changed, presence)[tracks], video.enhance(x, presence)[tracks], atol=1e-5)
    assert not torch.allclose(video.enhance(changed)[tracks], video.enhance(x)[tracks], atol=1e-2)
