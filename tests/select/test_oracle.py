"""Perfect labels score exactly the oracle by every route, and the order of tracks in a cache means nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chain import EXPRESSIONS, FRAMES, NAMES, SIZE, objects_of, truth_masks, write_split

from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.store import (
    CacheWriter,
    Card,
    SelectionCache,
    SelectionRecord,
    TextRecord,
    TrackRecord,
    write_selections,
    write_text,
    write_tracks,
)
from rvos_cache.types import Expression, GroundTruth, Selection, TrackSet, Words
from rvos_select.data.caches import TrackSource, candidates
from rvos_select.data.labels import mean_iou, oracle_tracks
from rvos_select.evaluation import evaluate_pngs, evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import merge
from rvos_select.merging.policy import PolicyOptions
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

TRACKS = 9
SHARED = {"dataset": "mevis", "split": "valid_u"}


def expressions_of(video: str) -> tuple[Expression, ...]:
    return tuple(Expression(video, e, f"thing {e}", tuple(ids)) for e, ids in EXPRESSIONS[video].items())


def write_cache(path: Path, seed: int, shuffled: bool = False) -> Path:
    """Tracks of `seed` that miss the objects by some pixels or frames or are noise; each third is one expression's own."""
    writer = CacheWriter(path, Card(kind="tracks", producer="flow", channels=8, label_iou=0.5, **SHARED))
    for number, video in enumerate(EXPRESSIONS):
        rng = np.random.default_rng([seed, number])
        truth = truth_masks(len(objects_of(video)))
        tracks = np.zeros((TRACKS, FRAMES, *SIZE), bool)
        for k in range(TRACKS):
            shift = tuple(rng.integers(-4, 5, 2))
            tracks[k] = np.roll(truth[k % len(truth)], shift, (1, 2)) & (rng.random((FRAMES, 1, 1)) > 0.2)
        tracks[-1] = rng.random(tracks[-1].shape) > 0.7
        prompt = np.where(np.arange(TRACKS) % 3 == 2, rng.integers(0, len(EXPRESSIONS[video]), TRACKS), -1).astype(np.int32)
        tokens = rng.standard_normal((TRACKS, FRAMES, 8)).astype(np.float16)
        order = rng.permutation(TRACKS) if shuffled else np.arange(TRACKS)
        track_set = TrackSet(
            tokens[order], np.ones((TRACKS, FRAMES), np.float16), RleMasks.from_dense(tracks[order]), prompt[order],
            ("flow",) * TRACKS, np.zeros(TRACKS, np.int32), np.zeros((TRACKS, 4), np.float32),
        )  # fmt: skip
        answers = GroundTruth(objects_of(video), RleMasks.from_dense(truth), np.ones(FRAMES, bool))
        overlap = count_overlap(track_set.masks, answers)
        write_tracks(writer, TrackRecord(video, NAMES, SIZE, expressions_of(video), track_set, answers, overlap))
    return path


def write_words(path: Path) -> Path:
    writer = CacheWriter(path, Card(kind="text", producer="hashed", channels=8, **SHARED))
    for video in EXPRESSIONS:
        expressions = expressions_of(video)
        rng = np.random.default_rng(5)
        vectors = [rng.standard_normal((3, 8)).astype(np.float16) for _ in expressions]
        words = tuple(Words(v, np.zeros((3, 2), np.int32), ("",) * 3) for v in vectors)
        write_text(writer, TextRecord(video, expressions, words))
    return path


@pytest.mark.parametrize("seed", range(3))
def test_perfect_labels_score_exactly_the_oracle(tmp_path: Path, seed: int) -> None:
    """The oracle's choice, written as selections, by the route over PNGs and by the one in memory."""
    write_split(tmp_path / "data")
    cache = write_cache(tmp_path / "c.zarr", seed)
    source = TrackSource([cache])
    writer = CacheWriter(tmp_path / "s.zarr", Card(kind="selections", producer="run", **SHARED))
    for video in source.video_ids():
        info, quality = source.info(video), mean_iou(source.overlap(video))
        selections = []
        for e in info.expressions:
            allowed = candidates(info, e.expression_id)
            picked = oracle_tracks(quality, source.ground_truth(video).indices(e.targets or ()), allowed)
            selections.append(Selection(e.expression_id, np.where(picked, 0.9, 0.1).astype(np.float32), allowed))
        write_selections(writer, SelectionRecord(video, info.frame_names, info.size, tuple(selections)))
    expected = oracle([cache])
    direct = evaluate_selections(tmp_path / "s.zarr", [cache])
    pngs = evaluate_pngs("mevis", tmp_path / "data", "valid_u", merge(tmp_path / "s.zarr", [cache], tmp_path / "png"))
    assert 0.2 < expected["jf"] < 0.99
    for scores in (direct, pngs):
        assert {k: scores[k] for k in ("j", "f", "jf")} == pytest.approx({k: expected[k] for k in ("j", "f", "jf")}, abs=1e-9)
        assert scores["expressions"].keys() == expected["expressions"].keys()
        for key, numbers in scores["expressions"].items():
            assert numbers == pytest.approx(expected["expressions"][key], abs=1e-9), key


@pytest.mark.parametrize(
    ("selector", "config"),
    [("mean-cosine", {"width": 8}), ("sola", {"width": 16, "layers": 1, "heads": 2, "negatives": 2})],
)
@pytest.mark.usefixtures("on_cpu")
def test_the_order_of_tracks_means_nothing(tmp_path: Path, selector: str, config: dict[str, object]) -> None:
    """The same tracks in another order: the same oracle, and from the same run the same masks."""
    one, two = write_cache(tmp_path / "a.zarr", 0), write_cache(tmp_path / "b.zarr", 0, shuffled=True)
    words = [write_words(tmp_path / "t.zarr")]
    settings = TrainSettings.model_validate({"selector": selector, "config": config, "epochs": 2, "optim": {"lr": 1e-2}})
    run = train([one], words, settings=settings, valid_tracks=[one], valid_texts=words, out=tmp_path / "run")
    selections = [predict(run, [cache], words, tmp_path / f"s{i}.zarr") for i, cache in enumerate((one, two))]
    first, second = (SelectionCache(path).selections("a")[1] for path in selections)
    assert not np.allclose(first.scores, second.scores, atol=1e-4)
    assert np.allclose(np.sort(first.scores), np.sort(second.scores), atol=1e-5)
    # A threshold in a wide gap of all scores: rounding must not decide what is chosen.
    chosen = SelectionCache(selections[0])
    scores = np.sort(np.concatenate([s.scores[s.candidates] for v in chosen.video_ids() for s in chosen.selections(v)]))
    middle = scores[len(scores) // 4 : -len(scores) // 4]
    widest = int(np.argmax(np.diff(middle)))
    threshold = float(middle[widest : widest + 2].mean())
    tables = [evaluate_selections(path, [cache], policy=PolicyOptions(threshold)) for path, cache in zip(selections, (one, two))]
    assert tables[0]["expressions"] == tables[1]["expressions"]
    assert 0.05 < tables[0]["jf"] < 0.95
    best = [oracle([cache]) for cache in (one, two)]
    assert best[0]["expressions"] == best[1]["expressions"]
    assert best[0]["objects"] == best[1]["objects"]
