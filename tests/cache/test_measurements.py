"""Measurements: stored where the split has its ground truth, absent where it hides it, and the tracks are the same."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from rvos_cache.cli import cli
from rvos_cache.errors import InputError
from rvos_cache.exchange.mirror import mirror
from rvos_cache.extraction import extract
from rvos_cache.store import CacheWriter, TrackCache, content_digest, verify, write_tracks
from rvos_cache.types import FeatureSpec

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
SCENE, TRACKER = "rvos_cache.contracts.scene:SceneDataset", "corner_tracker:CornerTracker"
MEASURED = ["measured/soft_overlap"]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("measured")
    for split in ("train", "hidden"):
        report = extract(SCENE, folder, split, TRACKER, folder / f"{split}.zarr")
        assert report.done == ["v0", "v1"]
    return {split: folder / f"{split}.zarr" for split in ("train", "hidden")}


def test_stored_where_the_split_has_its_ground_truth(caches: dict[str, Path]) -> None:
    cache = TrackCache(caches["train"])
    record = cache.read("v0")
    measured = cache.measurement("v0", "soft_overlap")
    assert measured.shape == (4, 1, 4) and measured.dtype == np.float32
    assert np.array_equal(measured, record.measurements["soft_overlap"])
    # CornerTracker weighs every pixel of its quarters with 0.5.
    assert record.overlap is not None
    assert np.array_equal(measured, record.overlap.inter * 0.5) and measured.any()
    assert not cache.card.training_only


def test_absent_where_the_split_hides_it(caches: dict[str, Path]) -> None:
    cache = TrackCache(caches["hidden"])
    assert not any(name in MEASURED for name in cache.folder("v0").array_names()) and cache.read("v0").measurements == {}
    with pytest.raises(InputError, match="hides its ground truth"):
        cache.measurement("v0", "soft_overlap")
    with pytest.raises(InputError, match="no measurement 'hits'; tracker corner_tracker:CornerTracker declares: soft_overlap"):
        cache.measurement("v0", "hits")


def test_the_tracks_are_the_same(caches: dict[str, Path]) -> None:
    shown, hidden = (TrackCache(caches[split]).folder("v1") for split in ("train", "hidden"))
    assert set(shown.array_names()) - set(hidden.array_names()) == {"gt_rle", "overlap", *MEASURED}
    for name in hidden.array_names():
        assert np.array_equal(shown.array(name), hidden.array(name)), name


def test_verify_and_info_know_them(caches: dict[str, Path]) -> None:
    for path in caches.values():
        assert list(verify(path)) == []
        told = CliRunner().invoke(cli, ["info", str(path)]).output
        specs = ["feature: maps (T, h, w, 3) float16, by frame", "feature: sides (E, N) float32"]
        assert "".join(f"  {spec}\n" for spec in [*specs, "measurement: soft_overlap (N, A, T) float32"]) in told
    card = json.loads(CliRunner().invoke(cli, ["info", "--json", str(caches["train"])]).output)["card"]
    assert FeatureSpec(**{**card["measurement_specs"][0], "dims": tuple(card["measurement_specs"][0]["dims"])})


def test_the_content_digest_covers_them(caches: dict[str, Path], tmp_path: Path) -> None:
    source = TrackCache(caches["train"])
    digests = []
    for factor in (1, 2):
        writer = CacheWriter(tmp_path / f"{factor}.zarr", source.card)
        for video_id in source.video_ids():
            record = source.read(video_id)
            measured = {name: value * np.float32(factor) for name, value in record.measurements.items()}
            object.__setattr__(record, "measurements", measured)
            write_tracks(writer, record)
        digests.append(content_digest(tmp_path / f"{factor}.zarr"))
    assert digests[0] == content_digest(caches["train"]) != digests[1]


def test_a_lost_measurement_is_a_fault(caches: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    shutil.copytree(caches["train"], path)
    shutil.rmtree(path / "videos/v0/measured/soft_overlap/c")
    faults = list(verify(path))
    assert faults and all("soft_overlap" in fault for fault in faults)


def test_an_array_that_the_card_does_not_declare_is_a_fault(caches: dict[str, Path], tmp_path: Path) -> None:
    source, path = TrackCache(caches["train"]), tmp_path / "c.zarr"
    writer = CacheWriter(path, source.card.model_copy(update={"measurement_specs": [], "feature_specs": []}))
    folder = source.folder("v0")
    attributes = {name: value for name, value in folder.attributes.items() if name != "provenance"}
    writer.publish("v0", {name: folder.array(name) for name in folder.array_names()}, attributes)
    assert any("'features/maps' is not declared" in fault for fault in verify(path))


def test_a_mirror_image_of_measurements_is_not_known(caches: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="extract split train-mirror instead"):
        mirror(caches["train"], tmp_path / "m.zarr")
