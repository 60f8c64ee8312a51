"""A released DVIS++ checkpoint is converted to a folder with the same outputs; an unfit tensor is named in the error."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny_dvis import CLASSES, QUERIES, UNREAD_OF_ADAPTER, WIDTH, dvis_head, mask2former, released_names
from tiny_sam2 import without_gpu
from torch import Tensor

from rvos_cache.cli import cli
from rvos_cache.errors import InputError
from rvos_cache.trackers.dvis.checkpoint import load_dvis
from rvos_cache.trackers.dvis.convert import Conversion, convert_dvis

UNREAD = {"criterion.empty_weight"} | {
    f"tracker.{name}.{p}" for name in ("mask_embed.layers.0", "mask_feature_proj") for p in ("weight", "bias")
}


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """Values of two ways are compared; on a GPU they round differently."""
    with without_gpu():
        yield


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Tensor]:
    return released_names()


@pytest.fixture
def released(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(checkpoint)


def convert(tensors: dict[str, Any], folder: Path) -> Conversion:
    torch.save({"model": tensors, "optimizer": {"state": {}}, "iteration": 7}, folder / "model_final.pth")
    return convert_dvis(folder / "model_final.pth", folder / "out")


@pytest.mark.parametrize("backbone", ["resnet", pytest.param("swin", marks=pytest.mark.slow), "adapter"])
def test_the_folder_has_the_outputs_of_the_checkpoint(backbone: str, tmp_path: Path) -> None:
    conversion = convert(released_names(backbone), tmp_path)
    assert conversion.backbone == {"adapter": "dvis_vit_adapter"}.get(backbone, backbone)
    assert (conversion.queries, conversion.channels, conversion.classes) == (QUERIES, WIDTH, CLASSES)
    segmenter, head = load_dvis(str(tmp_path / "out"))
    model, expected_head = mask2former(backbone), dvis_head(backbone)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    frames = segmenter.segment(images)
    assert torch.allclose(frames.q, expected.transformer_decoder_last_hidden_state, atol=1e-5)
    assert torch.allclose(frames.mask_features, expected.pixel_decoder_last_hidden_state, atol=1e-5)
    pairs = [part.reid(frames.q[None].clone()) for part in (head, expected_head)]
    assert torch.equal(pairs[0][0], pairs[1][0]) and torch.equal(pairs[0][1], pairs[1][1])
    tracked = [part.tracker(*pairs[0]) for part in (head, expected_head)]
    assert torch.equal(tracked[0].logits, tracked[1].logits)
    refined = [part.refiner(tracked[0].embeds, pairs[0][1]) for part in (head, expected_head)]
    assert torch.equal(refined[0].logits, refined[1].logits) and torch.equal(refined[0].mask_embed, refined[1].mask_embed)


@pytest.mark.parametrize("backbone", ["resnet", "adapter"])
def test_every_tensor_is_used_or_listed(backbone: str, tmp_path: Path) -> None:
    released = released_names(backbone)
    conversion = convert(released, tmp_path)
    assert set(conversion.unread) == UNREAD | (set(UNREAD_OF_ADAPTER) if backbone == "adapter" else set())
    assert conversion.tensors + len(conversion.unread) == len(released)
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record == {"source": "model_final.pth", "tensors": conversion.tensors, "unread": list(conversion.unread)}


@pytest.mark.parametrize("backbone", ["resnet", "adapter"])
def test_each_tensor_that_is_read_changes_the_folder(backbone: str, tmp_path: Path) -> None:
    """Every tensor is filled with its own number, and every number must be in the folder."""
    from safetensors.torch import load_file

    released = released_names(backbone)
    numbered = {name: torch.full_like(t, i) if t.is_floating_point() else t for i, (name, t) in enumerate(released.items())}
    conversion = convert(numbered, tmp_path)
    files = [load_file(tmp_path / "out" / name) for name in ("model.safetensors", "dvis_head.safetensors")]
    stored = {float(t.flatten()[0]) for file in files for t in file.values() if t.is_floating_point() and t.numel()}
    assert {float(i) for i, name in enumerate(numbered) if name not in conversion.unread} <= stored


def test_an_unknown_or_missing_tensor_is_named_and_no_folder_is_left(released: dict[str, Tensor], tmp_path: Path) -> None:
    for name in ("sem_seg_head.predictor.static_query.weight", "tracker.memory.weight", "backbone.res2.0.extra.weight"):
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            convert({**released, name: torch.ones(2, 2)}, tmp_path)
    for name in (
        "refiner.activation_proj.bias",
        "tracker.decoder_norm.weight",
        "sem_seg_head.predictor.reid_embed.layers.0.weight",
        "sem_seg_head.predictor.decoder_norm.bias",
        "sem_seg_head.pixel_decoder.mask_features.weight",
    ):
        with pytest.raises(InputError, match=f"'{name}' is missing"):
            convert({n: t for n, t in released.items() if n != name}, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model_final.pth"]


def test_tensors_of_the_adapter_are_named(tmp_path: Path) -> None:
    released = released_names("adapter")
    missing, unknown = "backbone.interactions.3.extra_extractors.1.attn.value_proj.bias", "backbone.interactions.0.injector.gamma"
    with pytest.raises(InputError, match=f"'{missing}' is missing"):
        convert({name: t for name, t in released.items() if name != missing}, tmp_path)
    with pytest.raises(InputError, match=f"'{unknown}' does not belong to a dvis_vit_adapter model"):
        convert({**released, unknown: torch.ones(128)}, tmp_path)


def test_an_online_checkpoint_is_refused(released: dict[str, Tensor], tmp_path: Path) -> None:
    """It has no refiner."""
    online = {name: t for name, t in released.items() if not name.startswith("refiner.")}
    with pytest.raises(
        InputError, match="is an online or image-level model of DVIS.*, without the temporal refiner; give one of the off"
    ):
        convert(online, tmp_path)
    with pytest.raises(InputError, match="is of another model, with no tensor of DVIS.*'s own parts"):
        convert({name: t for name, t in online.items() if "reid_embed" not in name}, tmp_path)
    # With one tensor of the refiner it is the offline model, damaged.
    kept = "refiner.decoder_norm.weight"
    with pytest.raises(InputError, match=r"the tensor 'refiner\..*' is missing; give a complete DVIS"):
        convert({**online, kept: released[kept]}, tmp_path)


class Malicious:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_code_in_a_dvis_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": Malicious(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="cannot be read as tensors alone"):
        convert_dvis(tmp_path / "bad.pth", tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"no checkpoint at all", {"model": [1, 2]}, {"model": {}}, torch.ones(2)])
def test_a_file_that_is_not_a_dvis_checkpoint_is_an_error_of_one_line(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=r"x\.pth: ") as caught:
        convert_dvis(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out: already exists"):
        convert_dvis(path, tmp_path / "out")


def test_the_command_prints_what_it_converted(released: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": released}, tmp_path / "dvis.pth")
    result = CliRunner().invoke(cli, ["convert-dvis", str(tmp_path / "dvis.pth"), "--out", str(tmp_path / "deep" / "out")])
    assert result.exit_code == 0, result.output
    assert "resnet, 6 queries, 64 channels, 5 classes" in result.output
    assert "not read by the offline model: tracker.mask_feature_proj.weight" in result.output
    files = {"config.json", "model.safetensors", "dvis_head.safetensors", "conversion.json"}
    assert {p.name for p in (tmp_path / "deep" / "out").iterdir()} >= files
