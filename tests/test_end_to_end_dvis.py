"""DVIS++ on moving shapes with a tiny random checkpoint: converted, extracted, and SOLA trained on the cache by its name alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_dvis
import torch
from odd_videos import call
from tiny_sam2 import without_gpu

from rvos_cache.shapes import write_shapes
from rvos_cache.store import TrackCache, verify

pytestmark = pytest.mark.slow  # whole runs; left to test-all


def run(*words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, None, *words)[0] == 0, words


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """Values of two ways are compared; on a GPU they round differently."""
    with without_gpu():
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a converted checkpoint, and caches of tracks and words of train and valid_u; tests do not change them."""
    out = tmp_path_factory.mktemp("dvis")
    write_shapes(out / "data", 2, 3)
    torch.save({"model": tiny_dvis.released_names()}, out / "dvis.pth")
    run("convert-dvis", out / "dvis.pth", "--out", out / "DVIS")
    settings = [word for name, value in tiny_dvis.SMALL.items() for word in ("--set", f"{name}={value}")]
    source = ["--dataset", "mevis", "--root", out / "data", "--split", "train", "--split", "valid_u"]
    run(
        "extract-all", *source, "--tracker", "dvis", "--set", f"checkpoint={out / 'DVIS'}", *settings,
        "--encoder", "hashed", "--out", out / "cache",
    )  # fmt: skip
    return out


def test_the_cache_is_whole_and_has_the_sums_of_every_object(work: Path) -> None:
    path = work / "cache/train/dvis.zarr"
    assert not list(verify(path))
    cache = TrackCache(path)
    for video in cache.video_ids():
        info = cache.info(video)
        soft = cache.measurement(video, "soft")
        assert soft.shape == (info.tracks, len(info.object_ids), info.frames, 2) and soft[..., 0].any()


def test_sola_trains_on_the_cache_by_its_name_alone(work: Path, tmp_path: Path) -> None:
    tracks = [work / f"cache/{split}/dvis.zarr" for split in ("train", "valid_u")]
    texts = [work / f"cache/{split}/text-hashed.zarr" for split in ("train", "valid_u")]
    run(
        "train", "--selector", "sola", "--cache", tracks[0], "--text", texts[0], "--valid-cache", tracks[1], "--valid-text", texts[1],
        "--set", "epochs=1", "--set", "batch=video", "--set", "config.width=32", "--set", "config.heads=4", "--out", tmp_path / "run",
    )  # fmt: skip
    run("predict", "--run", tmp_path / "run", "--cache", tracks[1], "--text", texts[1], "--out", tmp_path / "s.zarr")
    run("evaluate", "--selections", tmp_path / "s.zarr", "--cache", tracks[1], "--json", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["expressions"] and 0 <= scores["jf"] <= 1
