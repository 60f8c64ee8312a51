"""ReferDINO's head: sizes and parameter counts, its state, first values, and pads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_referdino import released_tensors
from tiny_grounding_dino import tiny_grounding_dino
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.trackers.referdino import HeadSizes, ReferDinoHead, image_masks, upsampled
from rvos_cache.trackers.referdino.head import NO_TEXT

SMALL = HeadSizes(64, 16, temporal_layers=2, temporal_hidden=32, mask_layers=2, mask_hidden=48, mask_points=4)


def small_head(seed: int = 0) -> ReferDinoHead:
    """A head of 64 channels in which every parameter is random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ReferDinoHead(SMALL)
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return head.eval()


def numel(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("width", "pyramid"), [(96, 1_072_560), (128, 1_073_584)])
def test_parameters_are_as_many_as_in_the_release(width: int, pyramid: int) -> None:
    with torch.device("meta"):
        head = ReferDinoHead(HeadSizes(map_channels=width))
    assert numel(head.enhancer) == 5_528_832
    assert numel(head.box) == 132_612
    assert numel(head.pyramid) == pyramid
    assert numel(head.mask_decoder) == 3_852_672


@torch.no_grad()
def test_the_state_gives_the_same_head() -> None:
    head = small_head()
    state = head.state()
    same = ReferDinoHead.from_official(state)
    assert (same.sizes.widths, same.sizes.mask_points, same.sizes.mask_hidden) == ((64, 32, 16, 8, 8), 4, 48)
    for name, tensor in head.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)
    same.box.layers[0].weight.zero_()
    assert bool(state["bbox_embed.0.layers.0.weight"].any())


def test_the_state_has_the_released_names() -> None:
    official = released_tensors("head")
    head = ReferDinoHead.from_official({**official, "feat_map.bias": torch.ones(3), "bbox_embed.1.layers.0.bias": torch.ones(3)})
    assert head.state().keys() == {name for name in official if ".lora_" not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox_embed.0.layers.0.weight": None}, "'bbox_embed.0.layers.0.weight' is missing"),
        ({"temporal_decoder.0.norm.1.bias": None}, "'temporal_decoder.0.norm.1.bias' is missing"),
        ({"mask_decoder.1.norm9.bias": torch.ones(64)}, "'mask_decoder.1.norm9.bias' is not one of it"),
        ({"pixel_decoder.out_lay.bias": torch.ones(3)}, r"'pixel_decoder.out_lay.bias' is \(3,\), expected \(64,\)"),
        ({"pixel_decoder.adapter3.weight": torch.ones(3)}, "expected at least 2 axes"),
        ({"bbox_embed.0.layers.0.weight": torch.ones(60, 60)}, "60 channels cannot be split into 8"),
    ],
)
def test_damaged_states_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    state = {name: tensor for name, tensor in (small_head().state() | change).items() if tensor is not None}
    with pytest.raises(InputError, match=message):
        ReferDinoHead.from_official(state)


def test_a_head_for_training_starts_as_the_released_one(tmp_path: Any) -> None:
    from transformers import GroundingDinoForObjectDetection

    model = GroundingDinoForObjectDetection.from_pretrained(tiny_grounding_dino(tmp_path / "grounding"))
    head = ReferDinoHead.from_grounding(model, temporal_layers=2)
    assert (head.sizes.channels, head.sizes.map_channels, len(head.enhancer.layer)) == (64, 16, 2)
    for own, other in ((head.box, model.bbox_embed[0]), (head.reference_points_head, model.model.decoder.reference_points_head)):
        for name, tensor in other.state_dict().items():
            assert torch.equal(own.state_dict()[name], tensor) and own.state_dict()[name].data_ptr() != tensor.data_ptr()
    sampling = head.mask_decoder[0].cross_attn
    # transformers has the same first values.
    reference = model.model.decoder.layers[0].encoder_attn
    reference.n_levels, reference.n_points, reference.n_heads = 1, 16, 8
    reference.sampling_offsets = torch.nn.Linear(64, 256)
    reference.attention_weights = torch.nn.Linear(64, 128)
    model._init_weights(reference)
    for name in ("sampling_offsets", "attention_weights"):
        for kind in ("weight", "bias"):
            initial, expected = (getattr(getattr(module, name), kind) for module in (sampling, reference))
            assert torch.allclose(initial, expected, atol=1e-5), (name, kind)
    assert not bool(sampling.value_proj.bias.any()) and not bool(head.enhancer.layer[0].self_attn.in_proj_bias.any())
    bound = (3 / (64 * 9)) ** 0.5
    assert bound * 0.9 < float(head.pyramid.lay1.weight.detach().abs().max()) <= bound


def inputs(seed: int = 0, batch: int = 2, number: int = 3) -> dict[str, Tensor]:
    """What `mask_logits` reads; the second map and text are padded."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.ones(batch, 6, 8, dtype=torch.bool)
    real[1:, 4:] = real[1:, :, 5:] = False
    text_mask = torch.ones(batch, 4, dtype=torch.bool)
    text_mask[1:, 2:] = False
    return {
        "queries": torch.randn((batch, number, 64), generator=generator),
        "reference": 0.2 + 0.4 * torch.rand((batch, number, 4), generator=generator),
        "features": torch.randn((batch, 64, 6, 8), generator=generator),
        "real": real,
        "text": torch.randn((batch, 4, 64), generator=generator),
        "text_mask": text_mask,
    }


@torch.no_grad()
def test_pads_change_no_real_cell() -> None:
    head, given = small_head(), inputs()
    expected = head.mask_logits(**given)
    given["features"] = given["features"].masked_fill(~given["real"][:, None], 30.0)
    given["text"] = given["text"].masked_fill(~given["text_mask"][..., None], 30.0)
    changed = head.mask_logits(**given)
    rows = given["real"][:, None].expand_as(changed)
    assert torch.allclose(changed[rows], expected[rows], atol=1e-4)
    assert not torch.allclose(changed[~rows], expected[~rows])
    # Boxes are parts of the real area: a reference of the whole map would sample elsewhere.
    given["real"] = torch.ones_like(given["real"])
    assert not torch.allclose(head.mask_logits(**given)[1], changed[1], atol=1e-2)


@torch.no_grad()
def test_frames_and_queries_of_a_batch_do_not_matter() -> None:
    head = small_head()
    generator = torch.Generator().manual_seed(1)
    queries, sentence = torch.randn((2, 5, 3, 64), generator=generator), torch.randn((2, 5, 64), generator=generator)
    whole = head.enhance(queries, sentence)
    assert torch.allclose(head.enhance(queries[1:, :, 2:], sentence[1:])[0, :, 0], whole[1, :, 2], atol=1e-5)
    # The third frame and later ones are pads of the first video.
    frames = torch.tensor([[True, True, False, False, False], [True] * 5])
    padded = head.enhance(queries, sentence, frames)
    assert torch.allclose(padded[0, :2], head.enhance(queries[:1, :2], sentence[:1, :2])[0], atol=1e-5)
    assert torch.allclose(padded[1], whole[1], atol=1e-5) and not torch.allclose(padded[0, :2], whole[0, :2], atol=1e-2)
    assert bool(head.enhance(queries, sentence, torch.zeros_like(frames)).isfinite().all())


@torch.no_grad()
def test_one_frame_one_query_and_no_layers() -> None:
    head = small_head()
    assert head.enhance(torch.randn(1, 1, 1, 64), torch.randn(1, 1, 64)).shape == (1, 1, 1, 64)
    assert head.mask_logits(**inputs(batch=1, number=1)).shape == (1, 1, 6, 8)
    queries = torch.randn(1, 2, 1, 64)
    plain = ReferDinoHead(HeadSizes(64, 16, temporal_layers=0))
    assert torch.equal(plain.enhance(queries, torch.randn(1, 2, 64)), queries)
    assert ReferDinoHead.from_official(plain.state()).sizes.temporal_layers == 0


@torch.no_grad()
def test_a_text_of_pads_alone_gives_finite_values() -> None:
    head, given = small_head(), inputs()
    given["text_mask"] = torch.zeros_like(given["text_mask"])
    assert bool(head.mask_logits(**given).isfinite().all())
    logits = head.logits(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3), torch.zeros(1, 1, 2, dtype=torch.bool))
    assert logits.tolist() == [[[NO_TEXT, NO_TEXT]]] and bool(logits.half().isfinite().all())


def test_the_logit_is_the_largest_product_with_a_real_token() -> None:
    queries = torch.tensor([1.0, -2.0]).view(1, 1, 2, 1).half()
    text = torch.tensor([0.5, 3.0, 9.0]).view(1, 1, 3, 1)
    mask = torch.tensor([True, True, False]).view(1, 1, 3)
    logits = small_head().logits(queries, text, mask)
    assert logits.tolist() == [[[3.0, -1.0]]] and logits.dtype == torch.float32


@torch.no_grad()
def test_boxes_at_the_border_are_limited() -> None:
    head = small_head()
    for parameter in head.box.parameters():
        parameter.zero_()
    reference = torch.tensor([[0.0, 1.0, 0.3, 1e-5], [-0.2, 1.3, 0.5, 0.999]])
    boxes = head.boxes(torch.zeros(2, 64), reference)
    # sigmoid(log(max(x, 0.001) / max(1 - x, 0.001))) of x, clamped to [0, 1].
    low, high = 0.001 / 1.001, 1 / 1.001
    expected = torch.tensor([[low, high, 0.3, 0.001 / (0.001 + 1 - 1e-5)], [low, high, 0.5, 0.999]])
    assert torch.allclose(boxes, expected, atol=1e-6)


def test_masks_at_odd_sizes() -> None:
    logits = torch.tensor([[[[-1.0, 1.0], [-1.0, 1.0]]]]).repeat(2, 1, 1, 1)
    logits[1] *= -1
    masks = upsampled(logits, (3, 5))
    # Columns' centres in cells: -0.3, 0.1, 0.5, 0.9, 1.3; the middle one is exactly 0, which is not above 0.
    assert masks.tolist() == [[[[False, False, False, True, True]] * 3], [[[True, True, False, False, False]] * 3]]
    assert upsampled(torch.zeros(3, 0, 2, 2), (4, 4)).shape == (3, 0, 4, 4)
    assert upsampled(torch.zeros(0, 2, 2, 2), (4, 4)).shape == (0, 2, 4, 4)
    # Of the padded width 8, three columns are the image.
    whole = image_masks(logits[1], (4, 8), (4, 6), (2, 3))
    assert whole.tolist() == [[[True, True, False]] * 2]
