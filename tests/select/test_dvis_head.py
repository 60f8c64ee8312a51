"""The training of the head of the small DVIS++ of moving shapes: its losses, its first weights, tracks matched with objects."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines import dvis_head
from pipelines.dvis_motion import CHANGES, FASTEST, PLACES, MotionHead, changes_of, compressed, soft_bins
from pipelines.dvis_segmenter import places_of
from pipelines.shapes_segmenter import CLASSES, FRAME_QUERIES, make_segmenter


def test_a_perfect_track_has_the_least_loss() -> None:
    """Mask features that are the objects' shares themselves: embeddings of the right objects, and of exchanged ones."""
    shares = torch.zeros(2, 3, 8, 8)
    shares[0, :, :3, :3], shares[1, :, 5:, 5:] = 1, 1
    features = torch.cat([shares.permute(1, 2, 3, 0), torch.ones(3, 8, 8, 1)], -1).half()
    clip = dvis_head.Segmented(torch.zeros(3, 4, 1), features, shares.half(), torch.zeros(3, 4), torch.tensor([4, 9]))
    right = torch.zeros(3, 4, 3)
    right[:, 2], right[:, 1], right[..., 2] = torch.tensor([20.0, 0, 0]), torch.tensor([0, 20.0, 0]), -10.0
    logits = torch.zeros(4, len(CLASSES) + 1)
    logits[:, -1] = 20.0
    logits[2, [4, -1]], logits[1, [9, -1]] = torch.tensor([20.0, 0]), torch.tensor([20.0, 0])
    loss, tracks, objects = dvis_head.clip_loss(logits, right, clip)
    assert loss < 0.01 and sorted(zip(tracks.tolist(), objects.tolist())) == [(1, 1), (2, 0)]
    # One object in half of the frames, the other in the rest: no track.
    broken = right.clone()
    broken[2:, [1, 2]] = right[2:, [2, 1]]
    assert dvis_head.clip_loss(logits, broken, clip)[0] > 5
    other = logits.clone()
    other[[1, 2]] = logits[[2, 1]]
    assert dvis_head.clip_loss(other, right, clip)[0] > 5


def test_in_many_steps_the_loss_of_masks_reads_every_cell() -> None:
    torch.manual_seed(0)
    features = torch.ones(2, 4, 4, 1).half().requires_grad_()
    shares = torch.zeros(1, 2, 4, 4).half()
    shares[:, :, :2] = 1
    clip = dvis_head.Segmented(torch.zeros(2, 3, 1), features, shares, torch.zeros(2, 3), torch.tensor([0]))
    read = []
    for _ in range(40):
        loss, *_ = dvis_head.clip_loss(torch.zeros(3, len(CLASSES) + 1), torch.ones(2, 3, 1), clip)
        (gradient,) = torch.autograd.grad(loss, features)
        read.append(gradient[0, ..., 0] != 0)
    assert {int(cells.sum()) for cells in read} == {16 // dvis_head.STRIDE**2} and torch.stack(read).any(0).all()


def test_soft_bins_by_hand() -> None:
    values = torch.tensor([-1.0, 0.0, 0.25, 7.0])
    assert soft_bins(values, 5, -1, 1).tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 1]]


def test_changes_are_slopes_through_the_frames_that_show_the_object() -> None:
    """x rises by 0.1 a frame, y is 0, the size falls by 0.2; where the object is hidden the place is nonsense."""
    times = torch.arange(9.0)
    places = torch.stack([0.1 * times, 0 * times, -0.2 * times], -1)[None]
    visible = torch.tensor([[True, True, False, True, True, True, False, False, True]])
    changes, known = changes_of(places.masked_fill(~visible[..., None], 9.0), visible)
    assert known.tolist() == [[True, True, False, True, True, True, False, False, False]]
    assert torch.allclose(changes[known], torch.tensor([0.1, 0.0, -0.2]), atol=1e-5)


def test_the_motion_head_tells_a_path_from_its_reverse() -> None:
    shares = torch.zeros(2, 6, 8, 8)
    for t in range(6):
        shares[0, t, 2:4, t : t + 2], shares[1, t, 2:4, 5 - t : 7 - t] = 1, 1
    places, visible = places_of(shares)
    changes, _ = changes_of(places, visible)
    truth = [soft_bins(x, *bins) for x, bins in zip(places.unbind(-1), PLACES.values())]
    truth += [soft_bins(x, *bins) for x, bins in zip(compressed(changes).unbind(-1), CHANGES.values())]
    tokens = torch.cat(truth, -1).clamp(min=1e-9).log()
    head = MotionHead(tokens.shape[-1])
    with torch.no_grad():
        head.weight.copy_(torch.eye(len(head.weight)))
        head.bias.zero_()
        # Nothing is less than the entropy of the distributions themselves.
        entropy = sum(-(x * x.clamp(min=1e-9).log()).sum(-1).mean() for x in truth) / 3
        everywhere = torch.ones(2, 6, dtype=torch.bool)
        assert head.loss(tokens, shares, everywhere) == pytest.approx(float(entropy), rel=1e-4)
        assert head.loss(tokens, shares.flip(1), everywhere) > entropy + 1
        assert head.loss(tokens, shares * 0, everywhere) == 0


def test_changes_count_where_the_track_has_the_object_all_around() -> None:
    """One track leaves its object in the last frame: the changes of the last REACH + 1 tokens do not count, their places do."""
    torch.manual_seed(0)
    shares = torch.zeros(1, 6, 8, 8)
    for t in range(6):
        shares[0, t, 2:4, t : t + 2] = 1
    head, tokens, covers = MotionHead(4), torch.randn(1, 6, 4), torch.tensor([[True] * 5 + [False]])
    tokens.requires_grad_()
    (gradient,) = torch.autograd.grad(head.loss(tokens, shares, covers), tokens)
    with torch.no_grad():
        head.weight[sum(count for count, *_ in PLACES.values()) :] = 0
    (of_places,) = torch.autograd.grad(head.loss(tokens, shares, covers), tokens)
    assert of_places[0].any(-1).all()
    assert (gradient - of_places)[0].any(-1).tolist() == [True, True, True, False, False, False]


def test_tracks_are_matched_with_the_objects_that_they_have_longest() -> None:
    """Track 2 has object 0 in two of three frames, track 0 object 1 in all; track 1 has nothing."""
    truth = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    truth[0, :, :2, :2], truth[1, :, 2:, 2:] = True, True
    masks = torch.zeros(3, 3, 4, 4, dtype=torch.bool)
    masks[2, :2], masks[2, 2], masks[0] = truth[0, :2], truth[1, 2], truth[1]
    masks[0, 1, 2:, 2] = False  # half of the object
    masks[0, 2, 2:, 2:] = torch.tensor([[True, False], [False, False]])
    tracks, objects, covers = dvis_head.match_tracks(masks, truth)
    assert (tracks.tolist(), objects.tolist()) == ([0, 2], [1, 0])
    assert covers.tolist() == [[True, True, False], [True, True, False]]


def test_a_pointer_s_loss_is_of_the_frames_where_a_query_has_the_object() -> None:
    pointer = dvis_head.Pointer(4)
    raw = 8 * torch.eye(4)[None].repeat(3, 1, 1)
    owners = torch.tensor([[0, -1, 2, -1], [-1, 2, -1, 0], [-1, -1, -1, -1]])
    objects = torch.tensor([2, 0])
    tracks = torch.zeros(3, 2, 4)
    for t, m, query in ((0, 0, 2), (0, 1, 0), (1, 0, 1), (1, 1, 3)):
        tracks[t, m, query] = 1
    with torch.no_grad():
        for layer in (pointer.tracks, pointer.queries):
            layer.weight.copy_(torch.cat([30 * torch.eye(4), torch.zeros(len(layer.weight) - 4, 4)]))
            layer.bias.zero_()
        assert pointer.loss(tracks, raw, owners, objects) < 1e-3
        assert pointer.loss(tracks.flip(1), raw, owners, objects) > 5
        tracks[2] = 7
        assert pointer.loss(tracks, raw, owners, objects) < 1e-3
        assert pointer.loss(tracks[2:], raw[2:], owners[2:], objects) == 0


def test_the_contrastive_loss_is_of_the_queries_with_an_object() -> None:
    owners = torch.tensor([[[0, 1, -1], [1, -1, 0]]])
    axes = torch.eye(4)
    good = torch.stack([axes[[0, 1, 2]], axes[[1, 3, 0]]])[None]
    bad = torch.stack([axes[[0, 1, 2]], axes[[0, 3, 1]]])[None]
    first = -torch.log_softmax(torch.tensor([1.0, 0, 0]) / dvis_head.SCALE, 0)[0]
    assert torch.allclose(dvis_head.contrastive_loss(good, owners), first)
    assert dvis_head.contrastive_loss(bad, owners) > 5
    assert dvis_head.contrastive_loss(good, torch.full((1, 2, 3), -1)) == 0


def test_tracks_start_as_the_queries_of_the_segmenter() -> None:
    torch.manual_seed(0)
    model = make_segmenter(1).eval()
    decoder = model.model.transformer_module.decoder
    torch.nn.init.normal_(decoder.layernorm.weight, 1)
    torch.nn.init.normal_(decoder.layernorm.bias)
    # transformers' own first weights give mask embeddings of nearly zero.
    for layer in decoder.mask_predictor.mask_embedder.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(layer.weight)
    trained = dvis_head.Trained(SimpleNamespace(model=model)).eval()  # type: ignore[arg-type]
    torch.nn.init.zeros_(trained.head.reid.reid_embed.layers[-1].weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(trained.head.reid.reid_embed.layers[-1].bias)  # type: ignore[arg-type]
    q = torch.randn(1, 1, FRAME_QUERIES, 64)
    q = q - q.mean(-1, keepdim=True)
    with torch.no_grad():
        queries, raw = trained.head.reid(q)
        tracked = trained.head.tracker(queries, raw)
        refined = trained.head.refiner(tracked.embeds, raw)
        normed = decoder.layernorm(q)
        masks = decoder.mask_predictor.mask_embedder(normed)
        assert torch.allclose(refined.mask_embed, masks, atol=1e-4) and masks.std() > 0.1
        assert torch.allclose(trained.mask_embed(trained.head.tracker.decoder_norm(tracked.embeds)), masks, atol=1e-4)
        assert torch.allclose(refined.logits, model.class_predictor(normed)[:, 0], atol=1e-4)


def test_mask_features_are_on_disk_and_leave_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with torch.inference_mode():
        values = torch.randn(2, 3, 4).half().permute(2, 0, 1)
        copy = dvis_head.on_disk(values)
        assert torch.equal(copy, values) and copy.dtype == torch.float16
    assert not list(tmp_path.iterdir()) and torch.equal(copy[torch.tensor([3, 0])], values[[3, 0]])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(OSError, match="missing"):
        dvis_head.on_disk(values)


def test_the_refiner_starts_with_the_changes_of_the_tracker_s_places() -> None:
    torch.manual_seed(0)
    trained = dvis_head.Trained(SimpleNamespace(model=make_segmenter(1)))  # type: ignore[arg-type]
    torch.nn.init.normal_(trained.head.tracker.decoder_norm.weight, 1)
    trained.start_changes()
    tokens = torch.randn(1, 7, 128)
    with torch.no_grad():
        told = next(trained.head.refiner.conv_short_aggregate_layers[0].children())(tokens.transpose(1, 2))[:, :6, 2:-2]
        places = trained.place(tokens * trained.head.tracker.decoder_norm.weight)
    changes, _ = changes_of(places, torch.ones(1, 7, dtype=torch.bool))
    expected = (changes * 2 / torch.tensor(FASTEST))[:, 2:-2].transpose(1, 2)
    assert torch.allclose(told, torch.cat([expected, -expected], 1), atol=1e-4, rtol=1e-4)


def test_every_parameter_of_the_head_is_trained() -> None:
    """Layers that start as nothing must not keep others, or each other, from a gradient: the convolutions over time once did."""
    torch.manual_seed(0)
    trained = dvis_head.Trained(SimpleNamespace(model=make_segmenter(1)))  # type: ignore[arg-type]
    shares = torch.zeros(2, 6, 8, 8)
    for t in range(6):
        shares[0, t, 1:4, t : t + 3], shares[1, t, 5:, 5 - t : 8 - t] = 1, 1
    owners = torch.full((6, FRAME_QUERIES), -1)
    owners[:, 3], owners[:, 5] = 0, 1
    q, features = torch.randn(6, FRAME_QUERIES, 64), torch.randn(6, 8, 8, 64).half()
    clip = dvis_head.Segmented(q, features, shares.half(), owners, torch.tensor([4, 9]))
    parameters = {name: own for name, own in trained.named_parameters() if own.requires_grad}
    optimizer = torch.optim.SGD(parameters.values(), lr=1e-3)
    still = set(parameters)
    for _ in range(4):
        optimizer.zero_grad()
        tracked = trained.tracked(clip)
        (trained.tracker_loss([clip, clip]) + trained.refiner_loss([tracked, tracked])).backward()
        optimizer.step()
        still -= {name for name, own in parameters.items() if own.grad is not None and own.grad.any()}
    assert still == set()
