"""DMVS learns a few expressions of near-perfect tracks to the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dmvs_work import MODULE, Work
from tiny_vita import CHANNELS, SIZES

from rvos_cache.datasets import open_dataset
from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.store import CacheWriter, Card, TextRecord, TrackRecord, write_text, write_tracks
from rvos_cache.text.hashed import HashedEncoder, HashedSettings
from rvos_cache.types import TrackSet
from rvos_select.evaluation import evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

pytestmark = pytest.mark.usefixtures("file_on_cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("dmvs"))


def write_near_perfect(work: Work, folder: Path) -> tuple[Path, Path]:
    """Four sentences of each of two videos. Tracks: each object moved by a pixel, and each where it is not; random queries."""
    source = open_dataset("mevis", work.root / "data", "train")
    specs = {
        "q_f": ("T", 5, CHANNELS), "q_v": (SIZES.video_queries, CHANNELS), "logits": (SIZES.video_queries, 4), "query": ("N",),
    }  # fmt: skip
    declared = [
        {"name": n, "dims": list(d), "dtype": "int32" if n == "query" else "float32", "by_frame": False} for n, d in specs.items()
    ]
    shared = {"dataset": "mevis", "split": "train"}
    card = Card(kind="tracks", producer="vita", channels=CHANNELS, label_iou=0.5, feature_specs=declared, **shared)
    encoder = HashedEncoder(HashedSettings())
    tracks, text = folder / "t.zarr", folder / "text.zarr"
    track_writer = CacheWriter(tracks, card)
    text_writer = CacheWriter(text, Card(kind="text", producer="hashed", channels=encoder.channels, **shared))
    for number, video in enumerate(map(source.video, source.video_ids()[:2])):
        rng, truth = np.random.default_rng(number), source.ground_truth(video.video_id)
        pixels = truth.masks.dense()
        pixels = np.concatenate([np.roll(pixels, 1, 3), np.roll(pixels, 24, 2)])
        n, frames = pixels.shape[:2]
        masks, zeros = RleMasks.from_dense(pixels), np.zeros(n, np.int32)
        arrays = {
            name: rng.normal(size=[{"T": frames, "N": n}.get(d, d) for d in dims]).astype(np.float32)
            for name, dims in specs.items()
        }
        arrays["query"] = rng.choice(SIZES.video_queries, n, replace=n > SIZES.video_queries).astype(np.int32)
        track_set = TrackSet(
            rng.normal(size=(n, frames, CHANNELS)).astype(np.float16), np.ones((n, frames), np.float16), masks, zeros - 1,
            ("query",) * n, zeros, np.zeros((n, 4), np.float32), arrays,
        )  # fmt: skip
        expressions = source.expressions(video.video_id)[:4]
        counts = count_overlap(masks, truth)
        write_tracks(
            track_writer, TrackRecord(video.video_id, video.frame_names, video.size, expressions, track_set, truth, counts)
        )
        write_text(text_writer, TextRecord(video.video_id, expressions, tuple(encoder.encode([e.text for e in expressions]))))
    return tracks, text


@pytest.mark.slow
def test_eight_expressions_are_learnt_to_the_oracle(work: Work, tmp_path: Path) -> None:
    """Acceptance test 9, with frozen masks."""
    tracks, text = write_near_perfect(work, tmp_path)
    settings = TrainSettings.model_validate(
        {
            "selector": "dmvs", "batch": "clip", "batch_size": 8, "epochs": 60, "clip": {"frames": 6}, "valid_expressions": 0,
            "optim": {"lr": 2e-3, "schedule": "constant"},
            "config": {**MODULE, "masks": "frozen", "motion_queries": 20},
        }
    )  # fmt: skip
    with pytest.warns(UserWarning, match="flatter"):
        run = train([tracks], [text], settings=settings, valid_tracks=[tracks], valid_texts=[text], out=tmp_path / "run")
    selections = predict(run, [tracks], [text], tmp_path / "s.zarr")
    ours, ceiling = evaluate_selections(selections, [tracks])["jf"], oracle([tracks])["jf"]
    assert len(evaluate_selections(selections, [tracks])["expressions"]) == 8
    assert ceiling > 0.7
    assert ours >= 0.95 * ceiling
