"""The bytes that `plan` tells of a cache of DVIS++ are those of the files that are written, masks left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.soft_overlap import SOFT_SPECS
from rvos_cache.store import CacheWriter, Card, TrackRecord, write_tracks
from rvos_cache.trackers.dvis.features import FeatureSizes, feature_specs, planned_bytes, video_bytes
from rvos_cache.trackers.dvis.settings import DvisSettings
from rvos_cache.types import VIDEO, GroundTruth, TrackSet

T, N, A, SIZE = 24, 20, 4, (36, 64)
RELEASED = FeatureSizes(queries=100, channels=256, token_channels=512, mask_channels=256, classes=25, rows=2)


@pytest.mark.parametrize("keep_raw", [False, True])
def test_an_extraction_has_the_planned_bytes_within_a_hundredth(keep_raw: bool, tmp_path: Path) -> None:
    """Random numbers in the released sizes: tokens of 512 numbers, 20 x 20 cells of 256, nothing that could be compressed away."""
    settings = DvisSettings(checkpoint="x", max_tracks=N, keep_raw=keep_raw)
    rng, letters = np.random.default_rng(0), {"N": N, "T": T, "A": A}
    masks, objects = (RleMasks.from_dense(rng.random((count, T, *SIZE)) > 0.5) for count in (N, A))
    truth = GroundTruth(tuple("abcd"), objects, np.ones(T, bool))

    def random(dims: tuple[str | int, ...], dtype: str) -> np.ndarray:
        values = rng.random([letters[d] if isinstance(d, str) else d for d in dims]) * 100
        return values.astype(dtype)

    specs = feature_specs(settings, RELEASED)
    tracks = TrackSet(
        tokens=random(("N", "T", 512), "float16"),
        presence=rng.random((N, T)).astype(np.float16),
        masks=masks,
        prompt=np.full(N, VIDEO, np.int32),
        origin=("query",) * N,
        prompt_frame=np.zeros(N, np.int32),
        prompt_box=np.zeros((N, 4), np.float32),
        features={spec.name: random(spec.dims, spec.dtype) for spec in specs},
    )
    names = tuple(f"{t:05d}" for t in range(T))
    measured = {spec.name: random(spec.dims, spec.dtype) for spec in SOFT_SPECS}
    record = TrackRecord("v", names, SIZE, (), tracks, truth, count_overlap(masks, truth), measured)
    card = Card(
        kind="tracks", dataset="d", split="s", producer="dvis", channels=512,
        feature_specs=[spec.to_json() for spec in specs], measurement_specs=[spec.to_json() for spec in SOFT_SPECS],
    )  # fmt: skip
    write_tracks(CacheWriter(tmp_path / "c.zarr", card), record)

    planned = video_bytes(settings, RELEASED, T)
    expected = sum(planned.values()) - planned["mask_rle"]
    array_of = {**dict.fromkeys(("tokens", "presence"), ""), **dict.fromkeys((s.name for s in (*specs, *SOFT_SPECS)), "")}
    written = dict.fromkeys(array_of, 0)
    for path in (tmp_path / "c.zarr").rglob("*"):
        if path.is_file():
            name = next((part for part in path.parts if part in array_of), None)
            if name is not None:
                written[name] += path.stat().st_size
    assert set(planned) == {*written, "mask_rle"}
    assert sum(written.values()) == pytest.approx(expected, rel=0.01)
    for name in ("tokens", "f_mask_pooled", *(["raw"] if keep_raw else [])):
        assert written[name] == pytest.approx(planned[name], rel=0.01), name
    plan = planned_bytes(settings, RELEASED, [(SIZE, T)])
    assert plan.sizes[plan.value] == sum(planned.values())
