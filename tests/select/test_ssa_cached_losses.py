"""The losses of SSA's cached form by hand: matches, classes, similarity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rvos_cache.types import Overlap
from rvos_select.selectors.ssa.cached_losses import TrackOutput, costs_of, matched_pairs, track_losses
from rvos_select.selectors.ssa.config import SsaConfig


def test_losses_by_hand() -> None:
    """One expression, two tracks, one object that the first track covers; every logit 0, embeddings 0."""
    area = np.array([[10, 10], [10, 10]], np.int32)
    inter = np.array([[[10, 10]], [[0, 0]]], np.int32)
    overlap = Overlap(inter, area, np.array([[10, 10]], np.int32), np.ones(2, bool))
    output = TrackOutput(
        torch.zeros(3, 1, 2, 2, 2), torch.zeros(4, 2, 1, 2, 2), torch.zeros(2, 1, 2, 2, 3), torch.zeros(2, 1, 2, 3),
        torch.ones(1, 2, 2, dtype=torch.bool),
    )  # fmt: skip
    values = track_losses(output, (overlap,), torch.tensor([True]), SsaConfig(form="cached"))
    half = float(np.log(2))
    assert float(values["frame_class"]) == pytest.approx(3 * half)
    assert float(values["video_class"]) == pytest.approx(4 * half)
    assert float(values["similarity"]) == pytest.approx(half)
    assert float(values["loss"]) == pytest.approx(2 * 3 * half + 2 * 4 * half + half)


def test_matched_tracks_are_those_that_cover_their_objects() -> None:
    """The gradient raises the logit of the covering track and lowers the other's; a frame without the object has no positive."""
    area = np.array([[10, 10], [10, 10]], np.int32)
    inter = np.array([[[10, 0]], [[0, 0]]], np.int32)
    overlap = Overlap(inter, area, np.array([[10, 0]], np.int32), np.ones(2, bool))
    frame_logits = torch.zeros(1, 1, 2, 2, 2, requires_grad=True)
    video_logits = torch.zeros(1, 1, 1, 2, 2, requires_grad=True)
    output = TrackOutput(
        frame_logits, video_logits, torch.zeros(1, 1, 2, 2, 3), torch.zeros(1, 1, 2, 3), torch.ones(1, 2, 2, dtype=torch.bool)
    )
    track_losses(output, (overlap,), torch.tensor([True]), SsaConfig(form="cached"))["loss"].backward()
    assert frame_logits.grad is not None and video_logits.grad is not None
    assert (frame_logits.grad[0, 0, :, :, 0] < 0).tolist() == [[True, False], [False, False]]
    assert (video_logits.grad[0, 0, 0, :, 0] < 0).tolist() == [True, False]


def test_iou_multi_has_every_covering_track_as_a_positive() -> None:
    area = np.full((3, 1), 10, np.int32)
    inter = np.array([[[10]], [[9]], [[2]]], np.int32)
    overlap = Overlap(inter, area, np.array([[10]], np.int32), np.ones(1, bool))
    for match, positives in (("hungarian", [True, False, False]), ("iou_multi", [True, True, False])):
        logits = torch.zeros(1, 1, 1, 3, 2, requires_grad=True)
        output = TrackOutput(
            torch.zeros(1, 1, 1, 3, 2),
            logits,
            torch.zeros(1, 1, 1, 3, 3),
            torch.zeros(1, 1, 3, 3),
            torch.ones(1, 1, 3, dtype=torch.bool),
        )
        track_losses(output, (overlap,), torch.tensor([True]), SsaConfig(form="cached", match=match))["loss"].backward()
        assert logits.grad is not None
        assert (logits.grad[0, 0, 0, :, 0] < 0).tolist() == positives


def test_pairs_of_iou_multi_are_real_tracks_once_each() -> None:
    area = np.full((4, 1), 10, np.int32)
    inter = np.array([[[10]], [[9]], [[8]], [[2]]], np.int32)
    overlap = Overlap(inter, area, np.array([[10]], np.int32), np.ones(1, bool))
    config = SsaConfig(form="cached", match="iou_multi")
    real = torch.tensor([True, True, False, True])
    tracks, objects = matched_pairs(torch.full((4,), 0.5), costs_of(overlap, config), real, config)
    assert sorted(tracks.tolist()) == [0, 1] and objects.tolist() == [0, 0]


def test_similarity_draws_queries_of_one_object_together_and_others_apart() -> None:
    """Two objects in two frames, each covered by its own track."""
    area = np.full((2, 2), 10, np.int32)
    inter = np.zeros((2, 2, 2), np.int32)
    inter[0, 0] = inter[1, 1] = 10
    overlap = Overlap(inter, area, np.full((2, 2), 10, np.int32), np.ones(2, bool))
    frame_embed = torch.eye(2).expand(1, 1, 2, 2, 2).clone().requires_grad_()
    clip_embed = torch.eye(2)[None, None].clone().requires_grad_()
    output = TrackOutput(
        torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 1, 2, 2), frame_embed, clip_embed, torch.ones(1, 2, 2, dtype=torch.bool)
    )
    value = track_losses(output, (overlap,), torch.tensor([True]), SsaConfig(form="cached"))["similarity"]
    # Of the 36 pairs 18 are of one object, with products of 1, and 18 of two, with products of 0.
    expected = (np.log1p(np.exp(-1.0)) + np.log(2)) / 2
    assert value.item() == pytest.approx(expected, rel=1e-6)
    value.backward()
    assert clip_embed.grad is not None
    assert (torch.diagonal(clip_embed.grad[0, 0]) < 0).all() and clip_embed.grad[0, 0, 0, 1] > 0


def test_of_two_equal_tracks_the_more_probable_is_matched() -> None:
    area = np.full((2, 1), 10, np.int32)
    overlap = Overlap(np.full((2, 1, 1), 10, np.int32), area, np.array([[10]], np.int32), np.ones(1, bool))
    config = SsaConfig(form="cached")
    for referred in ([0.2, 0.9], [0.9, 0.2]):
        tracks, _ = matched_pairs(torch.tensor(referred), costs_of(overlap, config), torch.ones(2, dtype=torch.bool), config)
        assert tracks.tolist() == [int(np.argmax(referred))]
