"""ReferDINO's modules against recorded values of the released ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_referdino import TOLERANCE, error, golden, golden_decoder, golden_model, released_tensors

from rvos_cache.trackers.referdino import ReferDinoHead, align, image_masks, prune_decoder, upsampled

CASES = {"a1": (0.5, 24, "a_lora"), "a2": (0.8, 12, "a"), "a3": (1.0, 8, "a_lora"), "a4": (0.35, 24, "a")}
FRAME = (37, 51)


@pytest.fixture(scope="module")
def head() -> ReferDinoHead:
    return ReferDinoHead.from_official(released_tensors("head"))


def needs(*names: str) -> None:
    """Skip where the recorded values are not all there."""
    missing = [name for name in names if name not in golden()]
    if missing:
        pytest.skip(f"{missing[0]} is only in the project's folder of golden values")


def part(case: str) -> dict[str, torch.Tensor]:
    """The recorded tensors of a case, by name without it."""
    return {name.removeprefix(f"{case}."): tensor for name, tensor in golden().items() if name.startswith(f"{case}.")}


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_the_pruned_decoder_is_the_released_one(case: str) -> None:
    needs(f"{case}.memory")
    keep, queries, group = CASES[case]
    names = ("hidden", "memory", "real", "reference", "valid_ratios", "text", "text_mask")
    inputs = {name: golden()[f"{case}.{name}"] for name in names}
    layers = prune_decoder(golden_decoder(queries, group), **inputs, shapes=[(6, 8), (3, 4)], keep=keep)
    assert len(layers) == 6
    for i, layer in enumerate(layers):
        assert torch.equal(layer.index, golden()[f"{case}.index{i}"])
        assert error(f"{case}.hs{i}", layer.hs) < TOLERANCE
        assert error(f"{case}.reference{i}", layer.reference) < TOLERANCE


@pytest.mark.parametrize("case", ["b1", "b2", "b3"])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_the_tracker_is_the_released_one(case: str, alpha: float) -> None:
    needs(f"{case}.queries")
    g = part(case)
    places = align(g["queries"], g["text"], alpha=alpha, confidence="code_minmax")
    assert torch.equal(places, g[f"perm_alpha{alpha}"])


@pytest.mark.parametrize("case", ["c1", "c2", "c3"])
@torch.inference_mode()
def test_the_enhancer_is_the_released_one(head: ReferDinoHead, case: str) -> None:
    needs(f"{case}.queries")
    g = part(case)
    assert error(f"{case}.out", head.enhance(g["queries"], g["sentence"])) < TOLERANCE


@pytest.mark.parametrize("case", ["d1", "d2", "d3"])
@torch.inference_mode()
def test_the_head_is_the_released_one(head: ReferDinoHead, case: str) -> None:
    needs(f"{case}.map8")
    g = part(case)
    queries, reference, text, text_mask = g["queries"], g["reference"], g["text"], g["text_mask"]
    if case != "d3":
        places = align(queries, text, alpha=0.1, confidence="code_minmax")
        assert torch.equal(places, g["perm"])
        queries, reference = (x.take_along_dim(places[..., None], 2) for x in (queries, reference))
        queries = head.enhance(queries, text[:, :, 0])
        assert error(f"{case}.enhanced", queries) < TOLERANCE
    features = head.features([g["map4"], g["map8"], g["map16"], g["map32"]])
    rows = [x.flatten(0, 1) for x in (queries, reference)]
    masks = head.mask_logits(*rows, features, g["real"], text.flatten(0, 1), text_mask.flatten(0, 1))
    values = {
        "logits": head.logits(queries, text, text_mask),
        "boxes": head.boxes(queries, reference),
        "mask_logits": masks.unflatten(0, queries.shape[:2]),
    }
    if case == "d1":
        values["features"] = features
    for name, value in values.items():
        assert error(f"{case}.{name}", value) < TOLERANCE, name


@pytest.mark.parametrize("k", range(4))
def test_masks_of_frames_are_the_released_ones(k: int) -> None:
    masks = upsampled(golden()[f"f{k}.masks"], FRAME)
    scores = golden()[f"f{k}.logits"].sigmoid().mean(0)
    # MeViS: all above 0.2, else the best; Ref-YouTube-VOS: the best.
    selected = scores > 0.2 if bool((scores > 0.2).any()) else scores == scores.max()
    assert torch.equal(masks[:, selected].any(1).to(torch.uint8), golden()[f"f.mevis.{k}"])
    assert torch.equal(masks[:, int(scores.argmax())].to(torch.uint8), golden()[f"f.ytvos.{k}"])


@pytest.mark.parametrize(("i", "resized", "original"), [(0, (25, 60), (60, 144)), (1, (32, 47), (49, 73))])
def test_masks_of_images_are_the_released_ones(i: int, resized: tuple[int, int], original: tuple[int, int]) -> None:
    masks = image_masks(golden()["f.a2d.masks"][i], (32, 64), resized, original)
    assert torch.equal(masks.to(torch.uint8), golden()[f"f.a2d.masks{i}"])


@torch.inference_mode()
def test_converted_weights_give_the_whole_released_model() -> None:
    model = golden_model()
    images = golden()["g.images"]
    ids = golden()["g.input_ids"].repeat(len(images), 1)
    calls: list[dict[str, Any]] = []
    model.model.decoder.register_forward_pre_hook(lambda _, __, kwargs: calls.append(kwargs), with_kwargs=True)
    outputs = model(images, ids)
    maps = model.model.backbone.conv_encoder.model(images).feature_maps
    values = {"map4": model.stage1, "map8": maps[0], "map16": maps[1], "map32": maps[2]}
    values |= {"memory": outputs.encoder_last_hidden_state_vision, "text": outputs.encoder_last_hidden_state_text}
    inputs = calls[0]
    layers = prune_decoder(
        model.model.decoder,
        hidden=inputs["inputs_embeds"],
        memory=inputs["vision_encoder_hidden_states"],
        real=inputs["vision_encoder_attention_mask"],
        reference=inputs["reference_points"],
        shapes=inputs["spatial_shapes_list"],
        valid_ratios=inputs["valid_ratios"],
        text=inputs["text_encoder_hidden_states"],
        text_mask=~inputs["text_encoder_attention_mask"],
    )
    for i, layer in enumerate(layers):
        values |= {f"hs{i}": layer.hs, f"reference{i}": layer.reference}
        assert torch.equal(layer.index, golden()[f"g.index{i}"])
    for name, value in values.items():
        assert error(f"g.{name}", value) < TOLERANCE, name
