"""Tuning of ReferDINO's upstream: what is trained, resumed and exported, on a tiny random GroundingDINO and moving shapes."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_referdino import TOLERANCE, error, golden, released_tensors
from safetensors.torch import load_file, save_file
from tiny_grounding_dino import tiny_grounding_dino
from tiny_sam2 import without_gpu
from torch import Tensor

from rvos_cache.cli import cli
from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.shapes import write_shapes
from rvos_cache.trackers.referdino import HeadSizes, ReferDinoHead
from rvos_cache.trackers.referdino.live import MaskInputs, layer_output
from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings
from rvos_cache.trackers.referdino.stages import FourStageGroundingDino
from rvos_cache.trackers.referdino.start import Start, load_start, make_live
from rvos_cache.trackers.referdino.tracker import GdinoQueries
from rvos_cache.trackers.referdino.trained import counts, group_of, select_trained, set_mode
from rvos_cache.tuning.run import Run, all_losses, export, saved_tensors, tune
from rvos_cache.tuning.clips import ClipSource, LiveBatch, collate
from rvos_cache.trackers.referdino.tune_settings import PRESETS, TuneSettings, tune_settings

SMALL = {"frames": 3, "augment": "none", "short_side": 64, "anchor_every": 16, "steps": 2, "accumulate": 1, "keep_ratio": 0.4}


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """Steps are compared to the last bit."""
    with without_gpu():
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    tiny_grounding_dino(folder / "gdino")
    write_shapes(folder / "shapes", 2, 0)
    return folder


@pytest.fixture(scope="module")
def dataset(work: Path) -> Dataset:
    return open_dataset("mevis", work / "shapes", "train")


def make_settings(work: Path, **values: Any) -> TuneSettings:
    return tune_settings({"checkpoint": str(work / "gdino"), **SMALL, **values})


@pytest.fixture(scope="module")
def run(work: Path, dataset: Dataset) -> Path:
    """A run of two steps."""
    tune(dataset, make_settings(work), work / "run")
    return work / "run"


def batch_of(start: Start, dataset: Dataset, settings: TuneSettings, count: int = 1) -> LiveBatch:
    source = ClipSource(dataset, settings)
    clips = [source.clip(n, torch.Generator().manual_seed(n)) for n in range(count)]
    return collate(clips, start.tokenizer, start.max_length)


def loss_of(start: Start, batch: LiveBatch, settings: TuneSettings) -> Tensor:
    output = start.live(batch.images, batch.real, batch.ids, batch.words)
    return all_losses(output, batch.truth, settings, float(batch.truth.valid.sum()))["loss"]


def real_size(preset: str, single_frame: bool, **values: Any) -> dict[str, int]:
    """Trained values of each group at the released sizes, without their memory."""
    from transformers import GroundingDinoConfig, SwinConfig

    settings = tune_settings({"preset": preset, **values})
    base = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12, "image_size": 384}
    swin = SwinConfig(out_indices=[2, 3, 4], **(base if preset.endswith("b") else {"image_size": 224}))
    with torch.device("meta"):
        live = make_live(FourStageGroundingDino(GroundingDinoConfig(backbone_config=swin)), None, settings)
    return counts(select_trained(live, single_frame, settings.left_out))


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("mevis_swint", 15_335_924),
        ("mevis_swinb", 15_337_012),
        ("coco_swinb", 9_808_180),
        ("a2d_swinb", 9_808_180),
        ("a2d_swint", 6_587_636),
    ],
)
def test_the_trained_parameters_are_the_released_ones(preset: str, expected: int) -> None:
    number = real_size(preset, tune_settings({"preset": preset}).frames == 1)
    assert sum(number.values()) == expected
    lora = 1_294_336 if preset == "a2d_swint" else 4_513_792
    norm0 = 256 if preset.endswith("b") else 192
    assert (number["lora"], number["box"], number["feat_map"]) == (lora, 132_612, 196_864)
    assert (number["bert_norms"], number["norm0"], number["mask_decoder"]) == (38_400, norm0, 3_852_672)


def test_only_trained_parameters_move(work: Path, run: Path) -> None:
    settings = make_settings(work)
    start = load_start(settings)
    before = {name: tensor.clone() for name, tensor in start.live.state_dict(keep_vars=False).items()}
    groups = {group_of(name) for name in start.trained}
    assert groups == {"lora", "box", "feat_map", "bert_norms", "norm0", "pyramid", "mask_decoder", "enhancer"}
    stored = load_file(run / "last" / "trained.safetensors")
    assert stored.keys() == saved_tensors(start).keys()
    moved = {group_of(name) for name, tensor in stored.items() if not torch.equal(tensor, before[name])}
    assert moved == groups
    upstream = load_file(run / "upstream" / "model.safetensors")
    frozen = load_file(work / "gdino" / "model.safetensors")
    same = {name for name in upstream.keys() & frozen.keys() if torch.equal(upstream[name], frozen[name])}
    # LoRA is merged into these; the others that differ are trained themselves.
    from rvos_cache.trackers.referdino.lora import LoraLinear

    adapted = {f"{n}.weight" for n, m in start.live.grounding.named_modules() if isinstance(m, LoraLinear)}
    changed = frozen.keys() - same
    assert changed - adapted == {n for n in changed if "LayerNorm" in n or "text_projection" in n or n.startswith("bbox_embed")}
    assert len(adapted & changed) > len(adapted) / 2


def test_the_exported_folder_extracts(run: Path, dataset: Dataset) -> None:
    tracker = GdinoQueries(GdinoQueriesSettings(checkpoint=str(run / "upstream"), masks="head", short_side=64, keep_ratio=0.4))
    video = dataset.video(dataset.video_ids()[0])
    tracks = tracker.track(video, dataset.expressions(video.video_id)[:1])
    assert tracks.masks.shape[0] == tracker.upstream.queries
    assert tracks.masks.area().any()


def test_a_resumed_run_is_the_uninterrupted_one(work: Path, run: Path, dataset: Dataset, tmp_path: Path) -> None:
    tune(dataset, make_settings(work, steps=1), tmp_path / "run")
    tune(dataset, make_settings(work, steps=2), tmp_path / "run")
    for name in ("last/trained.safetensors", "last/optimizer.safetensors", "upstream/model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes(), name
