"""Meta's checkpoints as folders of transformers: names, configuration, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_sam2
import torch
from click.testing import CliRunner
from golden_sam2 import FOLDER, VERSIONS, golden_model, meta_tensors

from rvos_cache.cli import cli
from rvos_cache.errors import InputError
from rvos_cache.trackers.sam2.convert import convert_sam2, sam2_config
from rvos_cache.trackers.sam2.names import SHARED, SIZES, ModelSize, model_size, to_meta, to_transformers
from rvos_cache.trackers.sam2.settings import Sam2Settings
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with tiny_sam2.without_gpu():
        yield


def trunk(size: ModelSize) -> dict[str, tuple[int, ...]]:
    """The names and shapes from which the size is recognised."""
    table = {"image_encoder.trunk.pos_embed": (1, size.width, size.background, size.background)}
    return table | {f"image_encoder.trunk.blocks.{i}.norm1.weight": (size.width,) for i in range(sum(size.blocks))}


def test_names_are_those_of_meta_s_checkpoint() -> None:
    """Against the list that was made when the weights were copied into Meta's model."""
    lines = [line.split() for line in (FOLDER / "sam2_names.txt").read_text("utf-8").splitlines()]
    expected = {"shared_image_embedding.positional_embedding" if ours == SHARED else ours: tuple(meta) for ours, *meta in lines}
    _, sources = to_transformers({name: torch.zeros(1) for names in expected.values() for name in names})
    assert sources == expected and len(expected) == 468


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_come_back_under_meta_s_names(version: str) -> None:
    tensors = meta_tensors(version)
    renamed, _ = to_transformers(tensors)
    again = to_meta(renamed, tensors)
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(("version", "name"), [("sam2.0", "SAM 2"), ("sam2.1", "SAM 2.1")])
def test_a_checkpoint_becomes_a_folder_that_the_tracker_loads(version: str, name: str, tmp_path: Path) -> None:
    tensors = meta_tensors(version)
    torch.save({"model": tensors, "epoch": 3}, tmp_path / "sam2.pt")
    command = ["convert-sam2", str(tmp_path / "sam2.pt"), "--out", str(tmp_path / "out/sam2")]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0 and f"{name}, Hiera size t, {len(tensors)} tensors used\nnot read: epoch" in result.output
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["sam2"]
    network = TransformersBackend(Sam2Settings(checkpoint=str(tmp_path / "out/sam2"))).network
    expected = golden_model(version).state_dict()
    state = network.model.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[k], expected[k]) for k in state)
    config = network.model.config
    assert network.side == 1024 and config.enable_occlusion_spatial_embedding == (version == "sam2.1")
    assert config.enable_temporal_pos_encoding_for_object_pointers == (version == "sam2.1")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.letter)
def test_the_four_sizes_are_recognised_and_configured(size: ModelSize) -> None:
    assert model_size(trunk(size)) == (size, "2")
    assert model_size(trunk(size) | {"no_obj_embed_spatial": (1, 64)}) == (size, "2.1")
    hiera = sam2_config(trunk(size)).vision_config.backbone_config
    assert hiera.embed_dim_per_stage == [size.width * k for k in (1, 2, 4, 8)]
    assert tuple(hiera.blocks_per_stage) == size.blocks and tuple(hiera.global_attention_blocks) == size.global_blocks


def test_the_large_size_has_the_parameters_of_sam2_hiera_large() -> None:
    """224.4 million, as Meta's model table says."""
    from transformers import Sam2VideoModel

    with torch.device("meta"):
        model = Sam2VideoModel(sam2_config(trunk(SIZES[-1])))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 224.4


def broken(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[dict[str, torch.Tensor], str]]:
    name = "memory_encoder.out_proj.weight"
    yield {k: v for k, v in tensors.items() if k != name}, r"memory_encoder\.projection\.weight.*missing"
    yield {**tensors, name: tensors[name][:3]}, r"memory_encoder\.out_proj\.weight.*expected \(64, 256, 1, 1\)"
    yield {**tensors, "teacher.weight": tensors[name]}, r"'teacher\.weight' is not one of SAM 2's"
    yield {**tensors, "memory_attention.extra": tensors[name]}, r"'memory_attention\.extra' has no counterpart"
    yield {"image_encoder.trunk.pos_embed": torch.zeros(1, 64, 7, 7)}, r"width 64, 0 blocks; known: t: width 96, 12 blocks"
    yield {"weight": tensors[name]}, r"no tensor image_encoder\.trunk\.pos_embed"


def test_what_is_no_whole_checkpoint_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    path, out = tmp_path / "sam2.pt", tmp_path / "out"
    for tensors, message in broken(meta_tensors("sam2.1")):
        torch.save({"model": tensors}, path)
        with pytest.raises(InputError, match=message) as error:
            convert_sam2(path, out)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["sam2.pt"]


def test_files_of_other_kinds_and_existing_folders_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("none")
    torch.save({"model": {"x": 3}}, tmp_path / "number.pt")
    for name, message in (
        ("absent.pt", "cannot be read"),
        ("text.pt", "not a checkpoint of tensors"),
        ("number.pt", "expected named tensors"),
    ):
        with pytest.raises(InputError, match=message):
            convert_sam2(tmp_path / name, tmp_path / "out")
    with pytest.raises(InputError, match="already exists"):
        convert_sam2(tmp_path / "text.pt", tmp_path)
