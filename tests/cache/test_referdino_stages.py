"""GroundingDINO with the map of its backbone's first stage: files, sizes, and an unchanged model otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_grounding_dino import tiny_grounding_dino

from rvos_cache.trackers.referdino.names import in_released
from rvos_cache.trackers.referdino.stages import STAGE1, FourStageGroundingDino


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_grounding_dino(tmp_path_factory.mktemp("stages") / "grounding")


def load(kind: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model of a folder in evaluation mode, and what is missing or unexpected in the folder."""
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    return model.eval(), report


@torch.no_grad()
def test_a_plain_checkpoint_gets_a_new_norm_and_stays_the_same_otherwise(folder: Path) -> None:
    from transformers import GroundingDinoForObjectDetection

    plain, _ = load(GroundingDinoForObjectDetection, folder)
    model, report = load(FourStageGroundingDino, folder)
    assert set(report["missing_keys"]) == {f"{STAGE1}weight", f"{STAGE1}bias"} and not report["unexpected_keys"]
    inputs = {"pixel_values": torch.randn((2, 3, 62, 90)), "input_ids": torch.tensor([[101, 5, 6, 1012, 102]] * 2)}
    assert torch.equal(model(**inputs).last_hidden_state, plain(**inputs).last_hidden_state)
    # ceil(62 / 4) x ceil(90 / 4) cells; a new norm has mean 0 and variance 1 in each.
    assert model.stage1.shape == (2, 16, 16, 23)
    assert float(model.stage1.mean(1).abs().max()) < 1e-5
    assert torch.allclose(model.stage1.var(1, correction=0), torch.ones(2, 16, 23), atol=1e-2)


@torch.no_grad()
def test_the_norm_is_saved_and_the_plain_class_leaves_it_out(folder: Path, tmp_path: Path) -> None:
    from transformers import GroundingDinoForObjectDetection

    model, _ = load(FourStageGroundingDino, folder)
    norm = model.get_submodule(STAGE1.rstrip("."))
    norm.weight.fill_(3.0)
    model.save_pretrained(tmp_path)
    again, report = load(FourStageGroundingDino, tmp_path)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert bool((again.get_submodule(STAGE1.rstrip(".")).weight == 3).all())
    plain, report = load(GroundingDinoForObjectDetection, tmp_path)
    assert set(report["unexpected_keys"]) == {f"{STAGE1}weight", f"{STAGE1}bias"} and not report["missing_keys"]
    assert plain.config.to_dict().keys() == model.config.to_dict().keys()
    assert in_released(f"{STAGE1}weight") == "backbone.0.norm0.weight"
