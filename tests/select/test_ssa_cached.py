"""SSA's cached form: padding and order of tracks, absent frames, chunks, expressions that count, caches that it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_ssa
import torch
from torch import Tensor

from rvos_cache.clip.pooling import NAMES
from rvos_cache.errors import InputError
from rvos_cache.store import Card, read_card
from rvos_cache.types import Overlap
from rvos_select.data.batch import Batch
from rvos_select.data.cards import CacheCards
from rvos_select.data.clips import ClipSampler, ClipSettings
from rvos_select.data.collate import collate
from rvos_select.data.video import InferenceVideo
from rvos_select.selectors.ssa import Ssa
from rvos_select.selectors.ssa.adapter import Adapter, mixed
from rvos_select.selectors.ssa.blocks import grid_positions, tokens_of
from rvos_select.selectors.ssa.cached import cells_of_centres

WIDTHS, WORDS = (4, 6, 8, 10), 12
CONFIG: dict[str, Any] = {
    **tiny_ssa.CACHED, "stage_channels": WIDTHS, "word_channels": WORDS, "token_channels": 3, "short_side": 96,
}  # fmt: skip


def module(seed: int = 0, **config: Any) -> Ssa:
    """In evaluation mode, its norms and biases away from 1 and 0."""
    torch.manual_seed(seed)
    ssa = Ssa({**CONFIG, **config}).eval()
    with torch.no_grad():
        for parameter in ssa.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return ssa


def batch(tracks: int = 5, frames: int = 6, expressions: int = 2, shared: bool = False, seed: int = 0, objects: int = 2) -> Batch:
    """Random pooled tracks; track 1 is absent from frames 2 and 3."""
    g = torch.Generator().manual_seed(seed)
    lead = 1 if shared else expressions
    corners = 0.1 + 0.3 * torch.rand(lead, frames, tracks, 2, generator=g)
    boxes = torch.cat([corners, corners + 0.2 + 0.3 * torch.rand(lead, frames, tracks, 2, generator=g)], -1)
    pooled = torch.randn(lead, frames, tracks, sum(WIDTHS), generator=g)
    if tracks > 1:
        boxes[:, 2:4, 1], pooled[:, 2:4, 1] = 0, 0
    area = (boxes[..., 2] > 0).numpy().transpose(0, 2, 1) * 40
    overlaps = []
    for b in range(expressions):
        own = area[min(b, lead - 1)].astype(np.int32)
        inter = (torch.rand(tracks, objects, frames, generator=g).numpy() * own[:, None]).astype(np.int32)
        gt = np.full((objects, frames), 40, np.int32)
        overlaps.append(Overlap(inter, own, gt, np.ones(frames, bool)))
    return Batch(
        tokens=torch.zeros(lead, tracks, frames, 3),
        frame_mask=torch.ones(lead, frames, dtype=torch.bool),
        track_mask=torch.ones(expressions, tracks, dtype=torch.bool),
        words=torch.randn(expressions, 7, WORDS, generator=g),
        word_mask=torch.ones(expressions, 7, dtype=torch.bool),
        frames={
            "clip_pool": tuple(pooled),
            "clip_frame": tuple(torch.randn(lead, frames, sum(WIDTHS), generator=g)),
            "clip_box": tuple(boxes),
        },
        overlap=tuple(overlaps),
        sizes=((96, 160),) * lead,
    )


def at(values: Batch, frames: slice = slice(None), tracks: Any = slice(None)) -> dict[str, tuple[Tensor, ...]]:
    """The features of some frames and tracks of a batch."""
    return {
        name: tuple(array[frames] if name == "clip_frame" else array[frames][:, tracks] for array in values.frames[name])  # type: ignore[index]
        for name in NAMES
    }


def permuted(values: Batch, order: Tensor) -> Batch:
    assert values.overlap is not None
    tracks = order.numpy()
    overlap = tuple(replace(o, inter=o.inter[tracks], area=o.area[tracks]) for o in values.overlap)
    return replace(
        values,
        tokens=values.tokens[:, order],
        frames=at(values, tracks=order),
        track_mask=values.track_mask[:, order],
        overlap=overlap,
    )


@torch.inference_mode()
def test_the_order_of_tracks_has_no_meaning() -> None:
    ssa, values, order = module(), batch(), torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(ssa(values)[:, order], ssa(permuted(values, order)), atol=1e-5)
    assert ssa(values).std() > 1e-3


@torch.inference_mode()
def test_padding_of_tracks_frames_and_words_changes_nothing() -> None:
    ssa, values = module(), batch()
    reference = ssa(values)
    wider = replace(
        values,
        tokens=torch.zeros(2, 7, 6, 3),
        track_mask=torch.nn.functional.pad(values.track_mask, (0, 2)),
        words=torch.nn.functional.pad(values.words, (0, 0, 0, 3), value=9.0),
        word_mask=torch.nn.functional.pad(values.word_mask, (0, 3)),
    )
    assert torch.allclose(ssa(wider)[:, :5], reference, atol=1e-5)
    assert bool(torch.isneginf(ssa(wider)[:, 5:]).all())
    longer = replace(
        values,
        tokens=torch.zeros(2, 5, 9, 3),
        frame_mask=torch.nn.functional.pad(values.frame_mask, (0, 3)),
        frames={
            name: tuple(torch.nn.functional.pad(a, (0, 0) * (a.ndim - 1) + (0, 3)) for a in values.frames[name]) for name in NAMES
        },
    )
    assert torch.allclose(ssa(longer), reference, atol=1e-5)


@torch.inference_mode()
def test_a_batch_is_its_expressions_one_by_one() -> None:
    ssa, shared = module(), batch(shared=True)
    for row, logits in enumerate(ssa(shared)):
        own = slice(row, row + 1)
        single = replace(
            shared, track_mask=shared.track_mask[own], words=shared.words[own], word_mask=shared.word_mask[own], overlap=None
        )
        assert torch.allclose(ssa(single)[0], logits, atol=1e-5)


@torch.inference_mode()
def test_chunks_of_frames_change_nothing_cached() -> None:
    values = batch()
    reference = module(chunk=18)(values)
    for chunk in (1, 4):
        assert torch.allclose(module(chunk=chunk)(values), reference, atol=1e-5)


@torch.inference_mode()
def test_other_tracks_are_no_candidates() -> None:
    """A track that an expression may not select does not change its scores."""
    ssa, values = module(), batch(expressions=1)
    mask = torch.tensor([[True, True, False, True, True]])
    without = permuted(values, torch.tensor([0, 1, 3, 4]))
    logits = ssa(replace(values, track_mask=mask))[0]
    assert torch.allclose(logits[mask[0]], ssa(without)[0], atol=1e-5)
    assert bool(torch.isneginf(logits[2]))


@torch.inference_mode()
def test_a_track_that_no_frame_shows_has_no_chance() -> None:
    ssa, values = module(), batch(expressions=1)
    frames = {name: tuple(a.clone() for a in values.frames[name]) for name in NAMES}
    frames["clip_box"][0][:, 4] = 0
    frames["clip_pool"][0][:, 4] = 0
    logits = ssa(replace(values, frames=frames))
    assert bool(torch.isneginf(logits[0, 4])) and bool(torch.isfinite(logits[0, :4]).all())


def test_a_video_without_tracks_has_no_scores_and_a_finite_loss() -> None:
    ssa, values = module().train(), batch(tracks=0)
    assert ssa.eval()(values).shape == (2, 0)
    loss = ssa.train().loss(values)["loss"]
    loss.backward()
    assert float(loss.detach()) == 0


@torch.inference_mode()
def test_what_is_absent_is_not_read() -> None:
    """Features of a track in frames where it is absent have no influence."""
    ssa, values = module(), batch(expressions=1)
    pooled = values.frames["clip_pool"][0].clone()  # type: ignore[attr-defined]
    pooled[2:4, 1] = 50.0
    changed = replace(values, frames={**values.frames, "clip_pool": (pooled,)})
    assert torch.allclose(ssa(changed), ssa(values), atol=1e-5)


@torch.inference_mode()
def test_the_adapter_of_a_cell_is_that_of_its_map() -> None:
    """A pooled token of one cell at its place is what the adapter makes of that cell."""
    torch.manual_seed(0)
    adapter = Adapter(6, 32, WORDS).eval()
    maps, sentence, words = torch.randn(2, 6, 3, 4), torch.randn(2, WORDS), torch.randn(2, 5, WORDS)
    mask = torch.ones(2, 5, dtype=torch.bool)
    reference = adapter(maps, sentence, words, mask)
    position = grid_positions((3, 4), 32, False, maps.device)
    streams = adapter.streams(tokens_of(maps)[:, 7:8], position[7:8], sentence, words, mask)
    whole = adapter.streams(tokens_of(maps), position, sentence, words, mask)
    gates = adapter.gates(*(stream.mean(1) for stream in whole))
    assert torch.allclose(mixed(gates, *streams)[:, 0], reference.flatten(2)[..., 7], atol=1e-5)


def test_centres_are_cells_as_on_a_map() -> None:
    """The centre of the third cell of the second row of a stage is (3, 2); frames of 96 x 160 are shown at 96 x 160."""
    centres = torch.tensor([[[2.5 * 8 / 160, 1.5 * 8 / 96]]])
    by_stage = cells_of_centres(module(), centres, [(96, 160)])
    assert torch.allclose(by_stage[1], torch.tensor([[[3.0, 2.0]]]))
    assert torch.allclose(by_stage[0], torch.tensor([[[5.5, 3.5]]]))


def test_the_loss_is_a_mean_over_expressions() -> None:
    ssa, values = module(), batch()
    whole = ssa.loss(values)
    assert values.overlap is not None
    parts = []
    for row in range(2):
        own = slice(row, row + 1)
        part = replace(
            values, tokens=values.tokens[own], frame_mask=values.frame_mask[own], track_mask=values.track_mask[own],
            words=values.words[own], word_mask=values.word_mask[own], overlap=values.overlap[own], sizes=values.sizes[own],
            frames={name: tuple(values.frames[name][own]) for name in NAMES},
        )  # fmt: skip
        parts.append(ssa.loss(part))
    for name, value in whole.items():
        assert value.item() == pytest.approx(sum(part[name].item() for part in parts) / 2, rel=1e-5)
    assert ssa.normalisers(values) == {}


@torch.no_grad()
def test_an_expression_without_words_does_not_count() -> None:
    ssa, values = module(), batch()
    words = values.word_mask.clone()
    words[1] = False
    losses = ssa.loss(replace(values, word_mask=words))
    assert values.overlap is not None and losses["loss"].item() != pytest.approx(ssa.loss(values)["loss"].item(), rel=1e-3)
    own = ssa.loss(
        replace(
            values, tokens=values.tokens[:1], frame_mask=values.frame_mask[:1], track_mask=values.track_mask[:1],
            words=values.words[:1], word_mask=values.word_mask[:1], overlap=values.overlap[:1], sizes=values.sizes[:1],
            frames={name: tuple(values.frames[name][:1]) for name in NAMES},
        )
    )  # fmt: skip
    for name, value in own.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_every_parameter_learns_but_those_of_one_text_key() -> None:
    ssa = module().train()
    ssa.loss(batch())["loss"].backward()
    without = [name for name, p in ssa.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    one_key = ("text_cross_attention", "time_aware_attn.bias", "attn.v_proj.bias")
    assert [name for name in without if not any(part in name for part in one_key)] == []


@pytest.mark.slow
def test_real_caches_of_moving_shapes() -> None:
    ssa = tiny_ssa.cached()
    rows = tiny_ssa.rows(tiny_ssa.pooled()["train"], ssa)
    sampler = ClipSampler(ClipSettings(frames=4, within=0), torch.Generator().manual_seed(0), ssa.requires)
    clips = sampler(rows[2:6])
    assert len({sample.video_id for sample, _ in rows[2:6]}) == 2
    assert bool(torch.isfinite(ssa.loss(clips)["loss"]))
    whole = collate(rows[2:6], ssa.requires)
    with torch.inference_mode():
        together = ssa(whole)
        for i, row in enumerate(rows[2:6]):
            alone = ssa(collate([row], ssa.requires))[0]
            assert torch.allclose(together[i, : len(alone)], alone, atol=1e-4)
        sample, _ = rows[2]
        scored = list(ssa.infer(InferenceVideo(sample, (2, 0), ssa.requires, torch.device("cpu"))))
    assert [len(part.batch) for part in scored] == [1, 1]
    assert torch.allclose(scored[0].logits[0], together[0, : len(sample.tokens)], atol=1e-4)


def test_caches_that_do_not_fit_are_errors() -> None:
    plain = read_card(tiny_ssa.pooled()["train"].with_name("flow.zarr"))
    pooled = read_card(tiny_ssa.pooled()["train"])
    text = [read_card(tiny_ssa.tiny().texts["train"])]

    def other(**values: Any) -> Card:
        return pooled.model_copy(update={"extra": {"clip": {**pooled.extra["clip"], **values}}})

    hashed = text[0].model_copy(update={"producer": "hashed", "weights": {}})
    for tracks, words, message in (
        ([pooled, plain], text, "by flow: its tracks have no features of CLIP; rvos-cache pool-clip"),
        ([other(widths=[768])], text, "form=cached reads CLIP features of 4 stages, it has those of 1"),
        ([pooled, other(image="0")], text, "whose image differs; pool them alike"),
        ([pooled, other(short_side=64)], text, "pooled with short_side = 64, .* with 96; pool them alike"),
        ([pooled, other(square=96, short_side=0)], text, "pooled with short_side = 0, .* with 96; pool them alike"),
        ([pooled], [hashed], "words of .* by hashed: not of the CLIP .*; rvos-cache extract-text --encoder clip"),
        ([], text, "no tracks cache given"),
    ):
        with pytest.raises(InputError, match=message):
            Ssa.config_values({"form": "cached"}, CacheCards(tracks, words))
    with pytest.raises(InputError, match=r"\[8, 16, 24, 32\] channels, the selector has \[4, 6, 8, 10\]"):
        module().bind(CacheCards([pooled], text))
    for config, message in (
        ({"tune_last_stage": True}, "tune_last_stage needs form=live"),
        ({"handed_on": 4}, "handed_on=4 is more than the 3 layers of the frame decoder"),
        ({"form": "live", "square": 96}, "form=live keeps the aspect ratio"),
        ({"form": "live", "short_side": 0}, "form=live keeps the aspect ratio"),
    ):
        with pytest.raises(InputError, match=message):
            module(**config)


def test_positions_are_those_of_the_frames_that_clip_read() -> None:
    """Frames of 90 x 160, shown to CLIP by their shorter side, at their own size, or as a square, as the card says."""
    pooled, text = (read_card(path) for path in (tiny_ssa.pooled()["train"], tiny_ssa.tiny().texts["train"]))
    for values, size in (
        ({"short_side": 180}, (180, 320)),
        ({"short_side": 180, "long_side": 240}, (135, 240)),
        ({"short_side": 0}, (90, 160)),
        ({"short_side": 0, "square": 64}, (64, 64)),
    ):
        card = pooled.model_copy(update={"extra": {"clip": {**pooled.extra["clip"], **values}}})
        config = Ssa.config_values({"form": "cached"}, CacheCards([card], [text]))
        centre = torch.full((1, 1, 2), 0.5)
        cells = cells_of_centres(module(**{**config, "stage_channels": WIDTHS, "word_channels": WORDS}), centre, [(90, 160)])
        assert torch.allclose(cells[0], torch.tensor([[[size[1] / 8 + 0.5, size[0] / 8 + 0.5]]]))
