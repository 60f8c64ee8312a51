"""Names of ReferDINO's released checkpoint, its copies, and LoRA on transformers' GroundingDINO."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from golden_referdino import released_shapes, released_tensors
from tiny_grounding_dino import tiny_grounding_dino
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.trackers.referdino import HeadSizes, ReferDinoHead, check_not_merged, check_released, hf_state
from rvos_cache.trackers.referdino.lora import LoraLinear, add_lora, lora_layers, merge_lora
from rvos_cache.trackers.referdino.names import GROUPS, counts, first, in_released, in_transformers, is_dropped, merged

SWIN = {"tiny": ([2, 2, 6, 2], [3, 6, 12, 24], 96), "base": ([2, 2, 18, 2], [4, 8, 16, 32], 128)}
LAYER = "transformer.decoder.layers.0.linear1"
COUNTS = {
    "transformer": 742, "bert": 199, "feat_map": 2, "input_proj": 16, "backbone": 357, "bbox_embed": 36, "ref_point_head": 8,
    "pixel_decoder": 28, "mask_decoder": 84, "temporal_decoder": 468,
}  # fmt: skip
"""Tensors of the released Swin-B with three temporal layers, by the first part of their names."""


def real_model(size: str) -> Any:
    """GroundingDINO of the released configuration on the meta device: names and shapes alone."""
    from transformers import GroundingDinoConfig, SwinConfig

    from rvos_cache.trackers.referdino.stages import FourStageGroundingDino

    depths, heads, width = SWIN[size]
    swin = SwinConfig(depths=depths, num_heads=heads, embed_dim=width, out_indices=[2, 3, 4])
    with torch.device("meta"):
        return FourStageGroundingDino(GroundingDinoConfig(backbone_config=swin))


def released_names(model: Any, head: ReferDinoHead) -> Iterator[str]:
    """The names of a released checkpoint of these modules, from those of transformers."""
    own = {in_released(name) for name in model.state_dict() if ".swin.layernorm." not in name}
    assert None not in own
    for layer in lora_layers(model):
        weight = in_released(f"{layer}.weight")
        assert weight is not None
        own |= {weight.replace(".weight", ".lora_A"), weight.replace(".weight", ".lora_B")}
    yield from (name for name in own if name)
    # What transformers lacks: the second copy, BERT's pooler, the tables of window positions, and the head.
    yield from (first(name) for name in own if name and ".ref_point_head." in name)
    yield from ("bert.pooler.dense.weight", "bert.pooler.dense.bias")
    yield from (name.replace("_bias_table", "_index") for name in own if name and name.endswith("bias_table"))
    for name in head.state():
        if name.startswith(("pixel_decoder.", "mask_decoder.")):
            yield name
        if name.startswith("temporal_decoder."):
            yield from (name.replace(".0.", f".{i}.", 1) for i in range(6))


@pytest.mark.parametrize(("size", "layers", "total"), [("base", 3, 1940), ("base", 1, 1628), ("tiny", 3, 1772)])
def test_the_names_are_as_many_as_in_the_release(size: str, layers: int, total: int) -> None:
    with torch.device("meta"):
        head = ReferDinoHead(HeadSizes(map_channels=SWIN[size][2], temporal_layers=layers))
    names = list(released_names(real_model(size), head))
    assert len(set(names)) == len(names) == total
    expected = COUNTS | ({"backbone": 189} if size == "tiny" else {}) | ({"temporal_decoder": 156} if layers == 1 else {})
    assert counts(names) == expected and set(expected) == set(GROUPS)
    assert all(is_dropped(name) or in_transformers(name) or ".lora_" in name for name in names)


def test_the_names_are_those_of_the_release() -> None:
    # Part g has two layers of everything, and all of its names.
    names = set(released_shapes("g"))
    for name in names:
        plain = re.sub(r"\.lora_[AB]$", ".weight", name)
        assert is_dropped(plain) or all(in_released(target) == plain for target in in_transformers(plain)), name
    assert {name for name in names if is_dropped(name)} == {
        name
        for name in names
        if name.startswith(("pixel_decoder.", "mask_decoder.", "temporal_decoder.", "ref_point_head.", "bert.pooler."))
    }


def test_any_subset_is_converted() -> None:
    tensors = {name: tensor for name, tensor in released_tensors("g").items() if tensor.numel() < 1_000_000}
    whole = hf_state(tensors)
    for name in [name for name in tensors if ".lora_" not in name][::7]:
        alone = hf_state({name: tensors[name]})
        assert set(alone) == set(in_transformers(name)) and set(alone) <= set(whole)
    assert hf_state({}) == {}
    assert all(tensor.dtype == torch.float32 for tensor in hf_state({"feat_map.bias": torch.ones(4).half()}).values())


def test_packed_projections_are_split_in_order() -> None:
    name = "transformer.decoder.layers.1.ca_text.in_proj_bias"
    parts = hf_state({name: torch.arange(6.0)})
    target = "model.decoder.layers.1.encoder_attn_text"
    assert {key: value.tolist() for key, value in parts.items()} == {
        f"{target}.query.bias": [0, 1], f"{target}.key.bias": [2, 3], f"{target}.value.bias": [4, 5],
    }  # fmt: skip


def lora() -> dict[str, Tensor]:
    """One layer of the release, with LoRA."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"weight": (8, 4), "lora_A": (32, 4), "lora_B": (8, 32)}
    return {f"{LAYER}.{name}": torch.randn(size, generator=generator) for name, size in sizes.items()}


def test_lora_is_merged_with_its_scale() -> None:
    tensors = lora()
    (weight,) = hf_state(tensors).values()
    product = sum(tensors[f"{LAYER}.lora_B"][:, k, None] * tensors[f"{LAYER}.lora_A"][k] for k in range(32))
    assert torch.allclose(weight, tensors[f"{LAYER}.weight"] + product / 32, atol=1e-6)
    assert set(merged(tensors)) == {f"{LAYER}.weight"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{LAYER}.lora_A": None}, "lora_A' is missing"),
        ({f"{LAYER}.lora_B": None}, "lora_B' is missing"),
        ({f"{LAYER}.weight": None}, "weight' is missing"),
        ({f"{LAYER}.lora_A": torch.ones(16, 4)}, r"lora_A and lora_B are \(8, 4\), \(16, 4\), \(8, 32\)"),
        ({f"{LAYER}.lora_B": torch.ones(4, 32)}, "lora_A and lora_B are"),
        ({"transformer.decoder.layers.0.linear3.weight": torch.ones(2, 2)}, "linear3.weight' is not one of ReferDINO"),
        ({"module.feat_map.bias": torch.ones(2)}, "module.feat_map.bias' is not one of ReferDINO"),
        ({"transformer.decoder.layers.0.self_attn.in_proj_bias": torch.ones(4)}, "cannot be split into 3 equal parts"),
    ],
)
def test_damaged_checkpoints_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    tensors = {name: tensor for name, tensor in (lora() | change).items() if tensor is not None}
    with pytest.raises(InputError, match=message):
        hf_state(tensors)


def test_copies_must_be_equal() -> None:
    tensors = {name: tensor for name, tensor in released_tensors("g").items() if tensor.numel() < 1_000_000}
    check_released(tensors)
    copies = [name for name in tensors if first(name) != name]
    # Two decoder layers: 6 tensors of the box heads and 78 of the enhancer once more, 12 and 8 in the decoder.
    assert len(copies) == 6 + 78 + 12 + 8
    for name in copies[::9]:
        with pytest.raises(InputError, match=f"'{re.escape(name)}' differs from '{re.escape(first(name))}'"):
            check_released({**tensors, name: tensors[name] + 1e-3})
    with pytest.raises(InputError, match="'criterion' is not one of ReferDINO"):
        check_released({**tensors, "criterion": torch.ones(1)})


def test_a_checkpoint_with_merged_lora_is_refused() -> None:
    tensors = lora()
    (target,) = in_transformers(f"{LAYER}.weight")
    own = {target: tensors[f"{LAYER}.weight"]}
    check_not_merged(tensors, own)
    # Another GroundingDINO, or no such layer.
    check_not_merged(tensors, {target: torch.ones(8, 4)})
    check_not_merged(tensors, {})
    twice = {**tensors, f"{LAYER}.weight": hf_state(tensors)[target] + 1e-6}
    with pytest.raises(InputError, match=f"'{LAYER}.weight' contains the product of LoRA already"):
        check_not_merged(twice, own)
    # Before training the product is 0.
    check_not_merged({**tensors, f"{LAYER}.lora_B": torch.zeros(8, 32)}, own)


@pytest.mark.parametrize("size", SWIN)
def test_lora_has_the_layers_and_parameters_of_the_release(size: str) -> None:
    model = real_model(size)
    names = add_lora(model)
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    assert len(names) == len(layers) == 122
    parameters = [p for layer in layers for p in (layer.lora_A, layer.lora_B)]
    assert sum(p.numel() for p in parameters) == 4_513_792
    encoder = [p for name, p in model.named_parameters() if "lora_" in name and name.startswith("model.encoder.")]
    assert sum(p.numel() for p in encoder) == 3_219_456
    assert all(p.requires_grad for p in parameters)
    assert not any(p.requires_grad for layer in layers for p in (layer.weight, layer.bias))
    assert model.model.decoder.layers[0].self_attn.query.weight.requires_grad
    assert len(lora_layers(real_model(size), encoder=False)) == 38


def test_lora_layers_are_those_of_the_release() -> None:
    released = {name.rpartition(".")[0] for name in released_shapes("g") if name.endswith(".lora_A")}
    released = {name for name in released if not name.startswith("ref_point_head.")}
    layers = [re.sub(r"layers\.[2-5]\.", "layers.0.", name) for name in lora_layers(real_model("tiny"))]
    assert {(in_released(f"{name}.weight") or "").removesuffix(".weight") for name in layers} == released


def test_lora_starts_without_effect_and_merges_to_the_same_output(tmp_path: Any) -> None:
    from transformers import GroundingDinoForObjectDetection

    folder = tiny_grounding_dino(tmp_path / "grounding")
    model = GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    inputs = {"pixel_values": torch.randn((1, 3, 64, 96)), "input_ids": torch.tensor([[101, 5, 6, 1012, 102]])}
    with torch.no_grad():
        plain = model(**inputs).last_hidden_state
        names = set(model.state_dict())
        layers = add_lora(model)
        assert torch.equal(model(**inputs).last_hidden_state, plain)
        for layer in layers:
            # Small enough that the order of the proposals does not depend on rounding.
            nn.init.normal_(model.get_submodule(layer).lora_B, std=0.1)
        adapted = model(**inputs).last_hidden_state
        assert float((adapted - plain).abs().max()) > 1e-2
        merge_lora(model)
        assert float((model(**inputs).last_hidden_state - adapted).abs().max()) < 1e-4
    assert set(model.state_dict()) == names


def test_a_lora_layer_is_the_formula() -> None:
    layer = LoraLinear(nn.Linear(4, 8))
    nn.init.normal_(layer.lora_B)
    x = torch.randn(5, 4)
    expected = x @ (layer.weight + layer.lora_B @ layer.lora_A / 32).T + layer.bias
    assert torch.allclose(layer(x), expected, atol=1e-5)
    assert torch.allclose(layer.merged()(x), expected, atol=1e-5)
    layer(x).sum().backward()
    assert layer.lora_A.grad is not None and layer.lora_B.grad is not None and layer.weight.grad is None
