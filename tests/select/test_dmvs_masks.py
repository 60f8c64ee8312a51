"""DMVS's masks, matching and losses: by hand, by loops, and learnt."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_dmvs import INPUT, SIZE, batch, dmvs, fixed_points
from tiny_vita import CHANNELS
from torch.nn import functional as F

from rvos_cache.types import Overlap
from rvos_select.data.batch import Batch
from rvos_select.losses.matching import assign, counted_costs
from rvos_select.losses.points import bce_loss, dice_loss, sample
from rvos_select.selectors.dmvs.masks import in_input, mask_logits, pair_losses, point_values

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def test_masks_are_drawn_in_chunks_at_the_frames_size() -> None:
    """Eq. 10 by a loop over queries and frames; bilinear to the input, without its padding, bilinear to the frame."""
    x = batch(2, t=7, shared=True)
    wanted = torch.tensor([[True, False, True, False], [False, True, False, False]])
    model = dmvs(chunk=3)
    chunks = list(model.draw(x, wanted))
    assert [chunk.shape[1] for chunk in chunks] == [3, 3, 1]
    masks = torch.cat(chunks, 1)
    assert masks.shape == (3, 7, *SIZE) and masks.dtype == torch.bool
    geometry = INPUT.geometry(SIZE)
    with torch.no_grad():
        embed = model.mask_head(model.decode(x).layers[-1])[wanted]
    for k in range(3):
        for t in range(7):
            logits = (x.frames["f_mask"][0][:][t].float() @ embed[k])[None, None]
            full = F.interpolate(logits, geometry.padded, mode="bilinear")[..., : geometry.resized[0], : geometry.resized[1]]
            assert (masks[k, t] == (F.interpolate(full, SIZE, mode="bilinear")[0, 0] > 0)).float().mean() > 0.999
    assert 0.05 < masks.float().mean() < 0.95
    assert [c.shape for c in model.draw(x, torch.zeros(2, 4, dtype=torch.bool))] == [(0, 3, *SIZE)] * 2 + [(0, 1, *SIZE)]
    with pytest.raises(ValueError, match="one video"):
        next(model.draw(batch(2), wanted))
    with pytest.raises(ValueError, match="frozen"):
        next(dmvs(masks="frozen").draw(x, wanted))


def test_many_masks_are_drawn_frame_by_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    x, model, wanted = batch(2, t=7, shared=True), dmvs(chunk=5), torch.ones(2, 4, dtype=torch.bool)
    whole = torch.cat(list(model.draw(x, wanted)), 1)
    monkeypatch.setattr("rvos_select.selectors.dmvs.masks.PIXELS", 2 * 8 * SIZE[0] * SIZE[1])
    parts = list(model.draw(x, wanted))
    assert [part.shape[1] for part in parts] == [2, 2, 1, 2]
    assert torch.equal(torch.cat(parts, 1), whole)


def test_a_basis_turns_embeddings_into_coordinates() -> None:
    """Low-rank mask features F W under (mask_basis)ᵀ e are the full ones where F lies in the basis."""
    x, model = batch(2, shared=True), dmvs()
    basis, _ = torch.linalg.qr(torch.randn(CHANNELS, 8, generator=torch.Generator().manual_seed(4)))
    low = torch.randn(*x.frames["f_mask"][0][:].shape[:3], 8, generator=torch.Generator().manual_seed(5))
    full = replace(x, frames={**x.frames, "f_mask": (low @ basis.T,)})
    low_rank = replace(x, frames={**x.frames, "f_mask": (low,)}, features={**x.features, "mask_basis": basis[None]})
    wanted = torch.ones(2, 4, dtype=torch.bool)
    a, b = (torch.cat(list(model.draw(y, wanted)), 1) for y in (full, low_rank))
    assert (a == b).float().mean() > 0.999
    losses = []
    for y in (full, low_rank):
        torch.manual_seed(0)
        losses.append(model.loss(y))
    torch.testing.assert_close(losses[0], losses[1], **CLOSE)


def test_gradients_through_mask_logits_are_autograd_s() -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(3, 4, 5, 8, generator=g).half()
    embed, wanted = (torch.randn(2, 8, generator=g).requires_grad_() for _ in range(2))
    with torch.no_grad():
        wanted.copy_(embed)
    weight = torch.randn(2, 3, 4, 5, generator=g)
    plain = torch.einsum("kc,thwc->kthw", wanted, features.float())
    torch.testing.assert_close(mask_logits(embed, features), plain)
    (mask_logits(embed, features) * weight).sum().backward()
    (plain * weight).sum().backward()
    torch.testing.assert_close(embed.grad, wanted.grad)


@pytest.mark.parametrize("objects", [[1, 0, 2, 0, 0, 1], [0], [3, 3]])
def test_losses_of_pairs_are_those_of_each_pair_s_object(monkeypatch: pytest.MonkeyPatch, objects: list[int]) -> None:
    """Sampled object by object: against the pairs one after another, at points of their own."""
    g = torch.Generator().manual_seed(2)
    logits, truth = torch.randn(len(objects), 3, 6, 9, generator=g), torch.rand(4, 3, 24, 36, generator=g) < 0.4
    points = torch.rand(len(objects) * 3, 20, 2, generator=g)
    monkeypatch.setattr("rvos_select.selectors.dmvs.masks.uncertain_points", lambda maps, count: points)
    own = points.reshape(len(objects), 3, 20, 2)
    values, wanted = (
        torch.stack([sample(maps[:, None].float(), at).flatten() for maps, at in zip(each, own)])
        for each in (logits, truth[objects])
    )
    assert torch.equal(
        torch.stack(pair_losses(logits, truth, objects, 20)), torch.stack([bce_loss(values, wanted), dice_loss(values, wanted)])
    )


@pytest.mark.parametrize("part", [1, 2 * 4 * 5 * 8, 1 << 20])
def test_mask_features_in_parts_have_the_values_of_the_whole(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr("rvos_select.selectors.dmvs.masks.PART", {"cpu": part})
    g = torch.Generator().manual_seed(0)
    features, truth = torch.randn(5, 4, 5, 8, generator=g).half(), torch.rand(2, 5, 16, 20, generator=g) < 0.4
    embed = torch.randn(3, 8, generator=g).requires_grad_()
    weight = torch.randn(3, 5, 4, 5, generator=g)
    plain = torch.einsum("kc,thwc->kthw", embed.detach(), features.float())
    torch.testing.assert_close(mask_logits(embed, features), plain)
    (mask_logits(embed, features) * weight).sum().backward()
    torch.testing.assert_close(embed.grad, torch.einsum("kthw,thwc->kc", weight, features.float()))
    torch.manual_seed(0)
    values, targets = point_values(embed, features, truth, 30)
    torch.manual_seed(0)
    points = torch.rand(1, 30, 2)
    torch.testing.assert_close(values, sample(plain.movedim(1, 0), points.expand(5, -1, -1)).movedim(0, 1).flatten(1))
    torch.testing.assert_close(targets, sample(truth.movedim(1, 0).float(), points.expand(5, -1, -1)).movedim(0, 1).flatten(1))


def test_truth_lies_in_the_input_as_its_image_does() -> None:
    geometry = INPUT.geometry(SIZE)
    masks = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
    masks[..., :12, 20:] = True
    resized = in_input(masks, geometry)[0, 0]
    h, w = geometry.resized
    assert resized.shape == geometry.padded
    assert resized[h:].sum() == resized[:, w:].sum() == 0
    assert resized[: h // 2 - 1, w // 2 + 1 : w].all() and not resized[:, : w // 2 - 1].any()


def test_a_perfect_answer_has_the_least_loss() -> None:
    """Masks of one-hot features and embeddings that pick them: every object is matched by its own query."""
    x = batch(1, t=2, objects=2)
    model = dmvs(points=400, bce_weight=1.0, dice_weight=1.0)
    geometry = INPUT.geometry(SIZE)
    truth = torch.zeros(2, 2, *SIZE, dtype=torch.bool)
    truth[0, :, 4:12, 4:16] = truth[1, :, 12:20, 20:36] = True
    small = F.interpolate(in_input(truth, geometry), geometry.cells(), mode="area").movedim(0, -1)
    features = torch.zeros(2, *geometry.cells(), CHANNELS)
    features[..., :2] = 60 * (small - 0.5)
    x = replace(x, truth=(truth,), frames={**x.frames, "f_mask": (features,)})
    embed = torch.zeros(1, 1, 4, CHANNELS)
    embed[0, 0, 3, 0] = embed[0, 0, 1, 1] = 1
    embed[0, 0, 0, 2] = embed[0, 0, 2, 2] = 1
    labels = torch.full((1, 1, 4), 1)
    bce, dice = model._match_masks(x, torch.zeros(1, 1, 4, 2), embed, labels, [[0, 1]])
    assert labels.tolist() == [[[1, 0, 1, 0]]]
    assert bce < 1.0 and dice < 0.2
    far = model._match_masks(x, torch.zeros(1, 1, 4, 2), -embed, torch.full((1, 1, 4), 1), [[0, 1]])
    assert far[0] > 2 * bce and far[1] > 2 * dice


def test_an_object_that_is_in_no_frame_of_the_clip_is_nobody_s() -> None:
    x, model = batch(2), dmvs(deep_supervision=False)
    assert x.truth is not None
    gone = (torch.cat([x.truth[0], torch.zeros_like(x.truth[0][:1])]), x.truth[1])
    one, two = [], []
    for seen, out in ((x, one), (replace(x, truth=gone), two)):
        torch.manual_seed(1)
        out.append(model.loss(seen))
    torch.testing.assert_close(one[0], two[0])


def test_an_expression_of_nothing_trains_no_mask_and_scores_all_negative() -> None:
    x = batch(1, objects=0)
    model = dmvs(deep_supervision=False)
    losses = model.loss(x)
    assert losses["bce"] == losses["dice"] == 0
    torch.testing.assert_close(losses["class"], F.softplus(model(x)[0]).mean())
    losses["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_class_loss_by_hand() -> None:
    """Two expressions, one layer; weights 1 and 0.1; the mean within, the sum over expressions; a padded query counts nowhere."""
    model = dmvs()
    classes = torch.tensor([[[[2.0, 0.0], [0.0, 0.0], [5.0, 5.0]], [[0.0, 1.0], [1.0, 0.0], [0.0, 3.0]]]])
    labels = torch.tensor([[[0, 1, 0], [1, 1, 0]]])
    real = torch.tensor([[True, True, False], [True, True, True]])

    def nll(a: float, b: float) -> float:
        return math.log(1 + math.exp(b - a))

    first = (nll(2, 0) + 0.1 * nll(0, 0)) / 1.1
    second = (0.1 * nll(1, 0) + 0.1 * nll(0, 1) + nll(0, 3)) / 1.2
    both = torch.tensor([True, True])
    assert model._class_loss(classes, labels, real, both).item() == pytest.approx(first + second, abs=1e-6)
    assert model._class_loss(classes, labels, real, torch.tensor([True, False])).item() == pytest.approx(first, abs=1e-6)


def test_frozen_labels_follow_the_counts() -> None:
    """With no class term the labels are the assignment of Dice and IoU; a worse track of the same object is a negative."""
    model, x = dmvs(masks="frozen", cost_class=0.0, motion_queries=9, deep_supervision=False), batch(2, tracks=6)
    decoded = model.decode(x)
    labels = torch.full((1, 2, 6), 1)
    model._match_tracks(x, decoded, torch.zeros(1, 2, 6, 2), labels)
    for b, counts in enumerate(x.overlap):
        tracks, _ = assign(torch.from_numpy(sum(5 * cost for cost in counted_costs(counts))))
        began = decoded.source[b].tolist()
        assert sorted(began[q] for q in (labels[0, b] == 0).nonzero()[:, 0].tolist()) == sorted(tracks.tolist())
    strict, none = dmvs(masks="frozen", least_iou=0.99, motion_queries=9), torch.full((1, 2, 6), 1)
    strict._match_tracks(x, decoded, torch.zeros(1, 2, 6, 2), none)
    assert (none == 1).all()


def test_a_duplicate_of_an_object_s_track_has_no_loss() -> None:
    """By hand: track 0 is the object, track 1 its half, track 2 lies elsewhere."""
    model = dmvs(masks="frozen", duplicate_iou=0.4, cost_class=0.0)
    x = batch(1, t=2, tracks=3)
    inter = np.array([[[4, 4]], [[2, 2]], [[0, 0]]], np.int32)
    area, truth = np.array([[4, 4], [2, 2], [9, 9]], np.int32), np.array([[4, 4]], np.int32)
    x = replace(x, overlap=(Overlap(inter, area, truth, np.ones(2, bool)),))
    decoded = model.decode(x)
    labels = torch.full((2, 1, 3), 1)
    judged = model._match_tracks(x, decoded, torch.zeros(2, 1, 3, 2), labels)
    place = [decoded.source[0].tolist().index(track) for track in range(3)]
    for layer in range(2):
        assert [labels[layer, 0, q].item() for q in place] == [0, 1, 1]
        assert [judged[layer, 0, q].item() for q in place] == [True, False, True]
    # Off, it is a negative; and where it is no duplicate, too.
    for other in (dmvs(masks="frozen"), dmvs(masks="frozen", duplicate_iou=0.5)):
        assert other._match_tracks(x, decoded, torch.zeros(2, 1, 3, 2), torch.full((2, 1, 3), 1)).all()
    loss = model.loss(x)["loss"]
    loss.backward()
    assert loss.isfinite() and loss != dmvs(masks="frozen", cost_class=0.0).loss(x)["loss"]


def test_an_object_in_two_tracks_has_two_positives_where_it_is_asked_for() -> None:
    """By hand: tracks 0 and 1 cover six and five tenths of the object, track 2 one tenth."""
    x = batch(1, t=1, tracks=3)
    inter, area = np.array([[[6]], [[5]], [[1]]], np.int32), np.array([[6], [5], [1]], np.int32)
    x = replace(x, overlap=(Overlap(inter, area, np.array([[10]], np.int32), np.ones(1, bool)),))

    def positives(**settings: Any) -> list[int]:
        model = dmvs(masks="frozen", cost_class=0.0, **settings)
        decoded, labels = model.decode(x), torch.full((1, 1, 3), 1)
        assert model._match_tracks(x, decoded, torch.zeros(1, 1, 3, 2), labels).all()
        return sorted(decoded.source[0, labels[0, 0] == 0].tolist())

    assert positives() == [0]
    assert positives(match="iou_multi") == [0]  # strictly larger
    assert positives(match="iou_multi", positive_iou=0.45) == [0, 1]
    # A track that answers is no duplicate.
    assert positives(match="iou_multi", positive_iou=0.45, duplicate_iou=0.46) == [0, 1]
    # What nothing covers well still has the best of all.
    assert positives(match="iou_multi", positive_iou=0.9) == [0]


@pytest.mark.parametrize("seen", [True, False])
def test_an_expression_without_an_object_has_no_positive(seen: bool) -> None:
    """It names none, or the frames show none; then every track is a negative."""
    x = batch(1, t=1, tracks=3)
    count = 0 if seen else 1
    none = Overlap(
        np.zeros((3, count, 1), np.int32), np.full((3, 1), 5, np.int32), np.zeros((count, 1), np.int32), np.ones(1, bool)
    )
    model, labels = dmvs(masks="frozen", match="iou_multi", duplicate_iou=0.5), torch.full((1, 1, 3), 1)
    x = replace(x, overlap=(none,))
    assert model._match_tracks(x, model.decode(x), torch.zeros(1, 1, 3, 2), labels).all() and (labels == 1).all()
    assert model.loss(x)["loss"].isfinite()


def test_frozen_scores_follow_their_tracks() -> None:
    model, x = dmvs(masks="frozen"), batch()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    turned = replace(x, tokens=x.tokens[:, order], features={**x.features, "query": x.features["query"][:, order]})
    torch.testing.assert_close(model(turned), model(x)[:, order])
    # Four of six tracks are motion queries; the others, of lower class scores, can never be chosen.
    assert (model(x).isinf().sum(1) == 2).all()
    x = replace(x, track_mask=x.track_mask.clone())
    x.track_mask[1] = False
    assert model(x)[1].tolist() == [0.0] * 6
    assert model.loss(x)["loss"].isfinite()


@pytest.mark.parametrize("match", ["hungarian", "iou_multi"])
def test_no_track_at_all_gives_numbers(match: str) -> None:
    model, x = dmvs(masks="frozen", match=match), batch(tracks=0)
    assert model(x).shape == (3, 0)
    losses = model.loss(x)
    assert losses["loss"].item() == 0


@pytest.mark.slow
def test_masks_and_choice_are_learnt() -> None:
    """Two sentences of one video, each of another moving square whose cells have a direction of their own in feature space."""
    truth = torch.zeros(2, 3, *SIZE, dtype=torch.bool)
    for t in range(3):
        truth[0, t, 3:13, 3 + 3 * t : 15 + 3 * t] = truth[1, t, 12:22, 26 - 3 * t : 38 - 3 * t] = True
    share = F.interpolate(in_input(truth, INPUT.geometry(SIZE)), INPUT.geometry(SIZE).cells(), mode="area")
    g = torch.Generator().manual_seed(0)
    features = torch.einsum("athw,ac->thwc", share, 3 * torch.randn(2, CHANNELS, generator=g))
    features = features + 0.1 * torch.randn(features.shape, generator=g) + 0.5 * torch.randn(CHANNELS, generator=g)
    x = batch(2, t=3, shared=True)
    x = replace(x, frames={**x.frames, "f_mask": (features.half(),)}, truth=(truth[:1], truth[1:]))
    model = dmvs(points=300).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    torch.manual_seed(0)
    for _ in range(120):
        loss = model.loss(x)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    wanted = model(x).sigmoid() > 0.7
    assert wanted.sum(1).tolist() == [1, 1]
    masks = torch.cat(list(model.draw(x, wanted)), 1)
    iou = (masks & truth).sum((1, 2, 3)) / (masks | truth).sum((1, 2, 3))
    assert (iou > 0.8).all(), iou


def test_clips_of_videos_of_different_sizes_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses are the single ones': class by expressions, masks by objects."""
    fixed_points(monkeypatch)
    a, b = batch(1, t=3, objects=1, seed=1), batch(1, t=3, objects=2, seed=2)
    wide = INPUT.geometry((24, 24))
    g = torch.Generator().manual_seed(0)
    b = replace(
        b, sizes=((24, 24),), truth=(torch.rand(2, 3, 24, 24, generator=g) < 0.3,),
        frames={**b.frames, "f_mask": (torch.randn(3, *wide.cells(), CHANNELS, generator=g),)},
    )  # fmt: skip
    assert wide.cells() != INPUT.geometry(SIZE).cells()
    parts = {
        name: torch.cat([getattr(a, name), getattr(b, name)])
        for name in (
            "tokens",
            "frame_mask",
            "track_mask",
            "words",
            "word_mask",
            "target",
            "spans",
            "motion_words",
            "static_words",
        )
    }
    joint = Batch(
        **parts, sizes=(*a.sizes, *b.sizes), truth=(*a.truth, *b.truth),
        frames={name: (*a.frames[name], *b.frames[name]) for name in a.frames},
    )  # fmt: skip
    model = dmvs()
    one, two, both = model.loss(a), model.loss(b), model.loss(joint)
    torch.testing.assert_close(both["class"], (one["class"] + two["class"]) / 2, **CLOSE)
    for name in ("bce", "dice"):
        torch.testing.assert_close(both[name], (one[name] + 2 * two[name]) / 3, **CLOSE)
