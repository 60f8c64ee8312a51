"""A released ReferDINO file is converted to a folder with the same model; an unfit tensor is named in the error."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_referdino import released_shapes
from released_referdino import four_stages, released_state, shared_grounding, shared_released, shared_upstream, tiny_head
from tiny_grounding_dino import tiny_grounding_dino
from tiny_sam2 import without_gpu
from torch import Tensor
from transformers import BertConfig, GroundingDinoConfig, SwinConfig

from rvos_cache.errors import InputError
from rvos_cache.trackers.referdino import HeadSizes, ReferDinoHead
from rvos_cache.trackers.referdino.convert import Conversion, convert_referdino, is_copy, is_unread, load_grounding, load_released
from rvos_cache.trackers.referdino.lora import lora_layers
from rvos_cache.trackers.referdino.names import RANK, counts, in_released
from rvos_cache.trackers.referdino.names import first as first_of
from rvos_cache.trackers.referdino.stages import FourStageGroundingDino
from rvos_cache.trackers.referdino.upstream import HEAD_FILE, RECORD_FILE, Upstream, load_head

pytestmark = pytest.mark.slow

TRAINED = "transformer.encoder.layers.1.linear1"
"""A layer with LoRA."""


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with without_gpu():
        yield


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(torch.load(shared_released(), weights_only=True)["model_state_dict"])


def convert(state: dict[str, Any], folder: Path, **others: Any) -> Conversion:
    torch.save({"model_state_dict": state, **others}, folder / "swint.pth")
    return convert_referdino(folder / "swint.pth", str(shared_grounding()), folder / "upstream")


def test_the_folder_has_the_weights_of_the_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    """GroundingDINO's own weights plus the products of LoRA."""
    folder = str(convert(state, tmp_path).folder)
    grounding, stored = four_stages(shared_grounding()), load_grounding(folder).state_dict()
    layers = lora_layers(grounding)
    assert len(layers) == 2 + 2 * 6 + 2 * 14
    for name, own in grounding.state_dict().items():
        expected = own
        if name.removesuffix(".weight") in layers:
            released = str(in_released(name)).removesuffix(".weight")
            expected = own + state[f"{released}.lora_B"] @ state[f"{released}.lora_A"] / RANK
            assert not torch.allclose(expected, own, atol=0.01)
        torch.testing.assert_close(stored[name], expected, rtol=0, atol=1e-6, msg=name)
    head, own_head = load_head(folder), tiny_head(grounding).state()
    assert head is not None
    for name, tensor in head.state().items():
        if "ref_point_head" not in name:
            assert torch.equal(tensor, own_head[name]), name
    decoder = load_grounding(folder).model.decoder.reference_points_head.state_dict()
    assert all(torch.equal(tensor, decoder[name]) for name, tensor in head.reference_points_head.state_dict().items())


def test_every_tensor_is_used_a_copy_or_listed(state: dict[str, Tensor], tmp_path: Path) -> None:
    conversion = convert(state, tmp_path)
    kinds = {name.split(".")[0] if "pooler" in name else name.rpartition(".")[2] for name in conversion.unread}
    assert kinds == {"bert", "relative_position_index"}
    assert sum(conversion.tensors.values()) == len(state) and conversion.tensors == counts(state)
    # Of two layers: the second enhancer, the boxes of both of the decoder's lists, and the encoding of boxes with LoRA.
    enhancer = sum(name.startswith("temporal_decoder.1.") for name in state)
    assert conversion.copies == enhancer + 6 + 12 + 8
    record = json.loads((conversion.folder / RECORD_FILE).read_text())
    assert (record["source"], record["unread"]) == ("swint.pth", list(conversion.unread))


def test_each_tensor_that_is_read_changes_the_folder(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Every tensor is filled with its own number, copies with that of the first, and every number must be in the folder."""
    from safetensors.torch import load_file

    plain = {name: tensor for name, tensor in state.items() if ".lora_" not in name}
    first = [name for name in plain if not is_copy(name, plain)]
    values = {name: float(i + 1) for i, name in enumerate(first)}
    numbered = {
        name: torch.full_like(tensor, values[first_of(name)]) if tensor.is_floating_point() else tensor
        for name, tensor in plain.items()
    }
    # Products of zero, so that every number stays as it is.
    lora = {name: torch.zeros_like(tensor) for name, tensor in state.items() if ".lora_" in name}
    folder = convert({**numbered, **lora}, tmp_path).folder
    stored = {
        float(tensor.flatten()[0])
        for file in ("model.safetensors", HEAD_FILE)
        for tensor in load_file(folder / file).values()
        if tensor.is_floating_point()
    }
    assert {values[name] for name in first if not is_unread(name, plain)} <= stored


def released_on_meta(swin: dict[str, Any], temporal_layers: int) -> tuple[Any, dict[str, Tensor]]:
    """A model of the released sizes, and its tensors under released names, without values."""
    config = SwinConfig(out_indices=[2, 3, 4], **swin)
    with torch.device("meta"):
        model = FourStageGroundingDino(GroundingDinoConfig(backbone_config=config, text_config=BertConfig()))
        head = ReferDinoHead(HeadSizes(map_channels=config.embed_dim, temporal_layers=temporal_layers))
    return model, released_state(model, head)


BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12}
TINY = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}


@pytest.mark.parametrize(("swin", "layers", "total"), [(BASE, 3, 1940), (BASE, 1, 1628), (TINY, 3, 1772)])
def test_files_of_the_released_sizes_are_read_whole(swin: dict[str, Any], layers: int, total: int) -> None:
    model, state = released_on_meta(swin, layers)
    assert len(state) == total
    head = load_released(model, state)
    assert head.sizes == HeadSizes(map_channels=swin["embed_dim"], temporal_layers=layers, widths=(256, 128, 64, 32, 16))
    assert {name for name in state if is_unread(name, state)} == {
        name for name in state if name.endswith("relative_position_index") or "pooler" in name
    }


def test_the_fixture_has_the_released_names() -> None:
    """Of part g, whose names and shapes were recorded; its modules make the tables of positions themselves."""
    bert = {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    with torch.device("meta"):
        model = FourStageGroundingDino(
            GroundingDinoConfig(num_queries=16, encoder_layers=2, decoder_layers=2, two_stage=True, text_config=bert)
        )
        state = released_state(model, ReferDinoHead())
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("relative_position_index")}
    assert shapes == released_shapes("g")


def test_the_tensors_may_be_at_the_top_and_in_half_precision(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, tmp_path / "bare.pth")
    folder = convert_referdino(tmp_path / "bare.pth", str(shared_grounding()), tmp_path / "upstream").folder
    assert Upstream(str(folder), 0.5, "code_gate").model.dtype == torch.float32


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_a_score_that_is_a_number_of_numpy_is_read(state: dict[str, Tensor], tmp_path: Path, module: str) -> None:
    """A2D's trainer stores one, with NumPy 1."""
    torch.save(
        {"model_state_dict": state, "best_mAP": np.float64(0.5)}, tmp_path / "a2d.pth", _use_new_zipfile_serialization=False
    )
    content = (tmp_path / "a2d.pth").read_bytes()
    assert content.count(b"numpy._core.multiarray\n") == 1
    (tmp_path / "a2d.pth").write_bytes(content.replace(b"numpy._core.multiarray\n", f"{module}\n".encode()))
    assert convert_referdino(tmp_path / "a2d.pth", str(shared_grounding()), tmp_path / "upstream").sizes.channels == 64


class Malicious:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("other", [Malicious, lambda _: np.arange(3), lambda _: np.array([{}])[0:1]])
def test_anything_else_beside_the_tensors_is_refused(
    state: dict[str, Tensor], tmp_path: Path, other: Callable[[Path], Any]
) -> None:
    with pytest.raises(InputError, match="cannot be read as tensors alone"):
        convert(state, tmp_path, best=other(tmp_path / "ran"))
    assert not (tmp_path / "ran").exists() and not (tmp_path / "upstream").exists()


@pytest.mark.parametrize("times", [1, 2])
def test_weights_that_contain_the_product_of_lora_are_refused(state: dict[str, Tensor], tmp_path: Path, times: int) -> None:
    """loralib adds it in evaluation mode, and a second time if such a state is loaded and saved in it."""
    merged = dict(state)
    for name in [name for name in state if name.endswith(".lora_A")]:
        layer = name.removesuffix(".lora_A")
        merged[f"{layer}.weight"] = state[f"{layer}.weight"] + times * state[f"{layer}.lora_B"] @ state[name] / RANK
    with pytest.raises(InputError, match="contains the product of LoRA already"):
        convert(merged, tmp_path)
    assert not (tmp_path / "upstream").exists()


def test_a_file_without_lora_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Every release has it in the decoder, and in all of the encoder or (a2d_swint) nowhere in it."""
    encoder = [name for name in state if ".lora_" in name and name.startswith("transformer.encoder.")]
    decoder = [name for name in state if ".lora_" in name and name not in encoder]
    for dropped, part in (([*encoder, *decoder], "decoder"), (decoder, "decoder"), (encoder[:2], "encoder")):
        with pytest.raises(InputError, match=rf"swint.pth: the tensor 'transformer.{part}\..*lora_A' is missing"):
            convert({name: tensor for name, tensor in state.items() if name not in dropped}, tmp_path)
        assert not (tmp_path / "upstream").exists()
    assert convert({name: tensor for name, tensor in state.items() if name not in encoder}, tmp_path).tensors["transformer"]


def test_another_grounding_is_a_warning_and_the_right_one_none(state: dict[str, Tensor], tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convert(state, tmp_path)
        assert [str(w.message) for w in caught if "--grounding" in str(w.message)] == []
        other = tiny_grounding_dino(tmp_path / "other", seed=5)
        convert_referdino(tmp_path / "swint.pth", str(other), tmp_path / "second")
        assert [str(w.message) for w in caught if "frozen weights are not those of --grounding" in str(w.message)]
    assert (tmp_path / "second").is_dir()


@pytest.mark.parametrize(
    "name",
    [
        "temporal_decoder.1.layer.0.norm.weight",
        "bbox_embed.1.layers.0.bias",
        "transformer.decoder.bbox_embed.0.layers.2.weight",
        "transformer.decoder.ref_point_head.layers.1.bias",
    ],
)
def test_a_copy_that_differs_is_named(state: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"swint\.pth: '{name}' differs from"):
        convert({**state, name: state[name] + 1}, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "transformer.encoder.fusion_layers.0.gamma_v", "transformer.decoder.layers.0.self_attn.in_proj_weight", "feat_map.bias",
        "backbone.0.norm0.weight", "bert.embeddings.word_embeddings.weight", "pixel_decoder.lay3.weight", "mask_decoder.1.norm2.bias",
        "temporal_decoder.0.layer.1.decoder.linear2.bias", f"{TRAINED}.lora_B", "input_proj.3.1.weight", "transformer.level_embed",
    ],
)  # fmt: skip
def test_a_missing_tensor_is_named(state: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"'{name}' is missing"):
        convert({n: tensor for n, tensor in state.items() if n != name}, tmp_path)


def test_a_tensor_that_does_not_belong_or_fit_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    cases = {
        "transformer.memory.weight": (torch.ones(2), "is not one of ReferDINO"),
        "backbone.0.layers.0.blocks.7.norm1.bias": (torch.ones(16), "does not belong to the GroundingDINO of --grounding"),
        "feat_map.weight": (torch.ones(64, 31), r"gives model\.text_projection\.weight \(64, 31\), --grounding has \(64, 32\)"),
        "mask_decoder.0.norm1.bias": (torch.full((64,), torch.nan), "holds other than finite numbers"),
    }
    for name, (tensor, message) in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            convert({**state, name: tensor}, tmp_path)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["swint.pth"]


def test_what_is_not_there_or_there_already_is_one_line(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pth: no such file; give a checkpoint of ReferDINO"):
        convert_referdino(tmp_path / "none.pth", str(shared_grounding()), tmp_path / "upstream")
    with pytest.raises(InputError, match=r"nowhere.*[ ]--grounding FOLDER$"):
        convert_referdino(shared_released(), str(tmp_path / "nowhere"), tmp_path / "upstream")
    (tmp_path / "upstream").mkdir()
    with pytest.raises(InputError, match="upstream: already exists"):
        convert(state, tmp_path)


def test_a_head_without_the_norm_that_it_reads_is_refused(tmp_path: Path) -> None:
    """A plain GroundingDINO lacks it, and with zeros in its place the mask decoder would read a constant map."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(shared_upstream(), tmp_path / "upstream")
    tensors = load_file(folder / "model.safetensors")
    rest = {name: tensor for name, tensor in tensors.items() if "norms.stage1." not in name}
    assert len(rest) == len(tensors) - 2
    save_file(rest, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"no weight '\S+stage1\.bias'"):
        Upstream(str(folder), 0.5, "code_gate")
