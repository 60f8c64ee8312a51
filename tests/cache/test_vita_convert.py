"""Released tensors are converted to a folder with the same outputs; an unfit tensor is named in the error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny_vita import SIZES, detectron2_names, mask2former, vita_head
from torch import Tensor

from rvos_cache.cli import cli
from rvos_cache.errors import InputError
from rvos_cache.trackers.mask2former.convert import read_mask2former
from rvos_cache.trackers.vita.checkpoint import load_vita
from rvos_cache.trackers.vita.convert import Conversion, convert_vita, is_unread
from rvos_cache.trackers.vita.head import KIND

pytestmark = pytest.mark.usefixtures("file_on_cpu")
BACKBONES = ("swin", "resnet")


@pytest.fixture(scope="module", params=BACKBONES)
def checkpoint(request: pytest.FixtureRequest) -> tuple[str, Any, dict[str, Tensor]]:
    model = mask2former(request.param)
    return request.param, model, detectron2_names(model, vita_head())


@pytest.fixture
def released(checkpoint: tuple[str, Any, dict[str, Tensor]]) -> dict[str, Tensor]:
    return dict(checkpoint[2])


def convert(tensors: dict[str, Any], folder: Path) -> Conversion:
    torch.save({"model": tensors, "optimizer": {"state": {}}, "iteration": 7}, folder / "model_final.pth")
    return convert_vita(folder / "model_final.pth", folder / "out")


def test_the_folder_has_the_outputs_of_the_checkpoint(checkpoint: tuple[str, Any, dict[str, Tensor]], tmp_path: Path) -> None:
    backbone, model, released = checkpoint
    conversion = convert(released, tmp_path)
    segmenter, head = load_vita(str(tmp_path / "out"))
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    queries, maps = segmenter(images)
    assert torch.allclose(model.class_predictor(queries), expected.class_queries_logits, atol=1e-5)
    projected = model.model.pixel_level_module.decoder.mask_projection(maps)
    assert torch.allclose(projected, expected.pixel_decoder_last_hidden_state, atol=1e-5)
    loaded = segmenter.model(images)
    for name in ("class_queries_logits", "masks_queries_logits"):
        assert torch.allclose(getattr(loaded, name), getattr(expected, name), atol=1e-5), name
    assert torch.equal(head(queries[None].float()).logits, vita_head()(queries[None].float()).logits)
    assert (conversion.backbone, conversion.sizes) == (backbone, SIZES)


def test_every_tensor_is_used_or_listed(checkpoint: tuple[str, Any, dict[str, Tensor]], tmp_path: Path) -> None:
    backbone, _, released = checkpoint
    conversion = convert(released, tmp_path)
    kinds = {name.split(".blocks")[0].rsplit(".", 1)[0] if "blocks" in name else name for name in conversion.unread}
    unread = {"criterion.empty_weight", "vita_criterion.empty_weight"} | {
        f"vita_module.sim_embed_frame.{p}" for p in ("weight", "bias")
    }
    assert kinds == unread | ({"backbone.layers"} if backbone == "swin" else set())
    assert conversion.tensors + len(conversion.unread) == len(released)
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record == {"source": "model_final.pth", "tensors": conversion.tensors, "unread": list(conversion.unread)}


def test_each_tensor_that_is_read_changes_the_folder(checkpoint: tuple[str, Any, dict[str, Tensor]], tmp_path: Path) -> None:
    """Every tensor is filled with its own number, and every number must be in the folder."""
    from safetensors.torch import load_file

    numbered = {name: torch.full_like(t, i) if t.is_floating_point() else t for i, (name, t) in enumerate(checkpoint[2].items())}
    conversion = convert(numbered, tmp_path)
    tensors = [
        *load_file(tmp_path / "out" / "model.safetensors").values(),
        *load_file(tmp_path / "out" / "vita_head.safetensors").values(),
    ]
    stored = {float(t.flatten()[0]) for t in tensors if t.is_floating_point() and t.numel()}
    assert {float(i) for i, name in enumerate(numbered) if name not in conversion.unread} <= stored


def test_tensors_at_the_top_level_and_in_half_precision_are_converted(released: dict[str, Tensor], tmp_path: Path) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in released.items()}
    torch.save(half, tmp_path / "bare.pth")
    convert_vita(tmp_path / "bare.pth", tmp_path / "out")
    segmenter, head = load_vita(str(tmp_path / "out"))
    assert segmenter.model.dtype == torch.float32 and head.class_embed.weight.dtype == torch.float32


def test_an_unknown_tensor_is_named_and_no_folder_is_left(released: dict[str, Tensor], tmp_path: Path) -> None:
    for name in (
        "sem_seg_head.predictor.reid_embed.weight",
        "vita_module.memory.weight",
        "backbone.layers.0.blocks.0.extra.weight",
    ):
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            convert({**released, name: torch.ones(2, 2)}, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model_final.pth"]


@pytest.mark.slow
def test_each_missing_tensor_is_named(released: dict[str, Tensor]) -> None:
    # One of each kind: the tensors of all blocks have the same names but for their numbers.
    tensors = {name: tensor for name, tensor in released.items() if not name.startswith("vita_") and not is_unread(name)}
    for name in {"".join(c for c in name if not c.isdigit()): name for name in tensors}.values():
        with pytest.raises(InputError, match=f"'{name}' is missing"):
            read_mask2former({n: t for n, t in tensors.items() if n != name}, KIND)


def test_a_tensor_of_another_shape_is_named(released: dict[str, Tensor], tmp_path: Path) -> None:
    for name in ("sem_seg_head.predictor.decoder_norm.weight", "sem_seg_head.pixel_decoder.layer_1.weight"):
        with pytest.raises(InputError, match=f"{name!r} gives .* expected"):
            convert({**released, name: released[name][:-1]}, tmp_path)
    packed = "sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn.in_proj_weight"
    with pytest.raises(InputError, match="cannot be split into 3 equal parts"):
        convert({**released, packed: released[packed][:-1]}, tmp_path)


def test_tensors_of_two_backbones_are_not_mixed(tmp_path: Path) -> None:
    swin, resnet = (detectron2_names(mask2former(b), vita_head()) for b in BACKBONES)
    stem = {name: tensor for name, tensor in swin.items() if name.startswith("backbone.patch_embed")}
    with pytest.raises(InputError, match=r"'backbone\.patch_embed\.\S+' does not belong to a resnet model"):
        convert({**resnet, **stem}, tmp_path)


class Malicious:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": Malicious(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="cannot be read as tensors alone"):
        convert_vita(tmp_path / "bad.pth", tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint at all", {"model": [1, 2]}, {"model": {}}, {"model": {"a": 3}}, torch.ones(2)]
)
def test_a_file_that_is_not_a_checkpoint_is_an_error_of_one_line(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=r"x\.pth: ") as caught:
        convert_vita(path, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_and_an_existing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pth: no such file"):
        convert_vita(tmp_path / "none.pth", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out: already exists"):
        convert_vita(tmp_path / "none.pth", tmp_path / "out")


def test_the_command_prints_what_it_converted(released: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": released}, tmp_path / "vita.pth")
    result = CliRunner().invoke(cli, ["convert-vita", str(tmp_path / "vita.pth"), "--out", str(tmp_path / "deep" / "out")])
    assert result.exit_code == 0, result.output
    assert "6 frame queries, 9 video queries, 5 classes" in result.output
    assert "not read in evaluation: vita_criterion.empty_weight" in result.output
    assert {p.name for p in (tmp_path / "deep" / "out").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "vita_head.safetensors",
    }
