"""DeRVOS's steps with a tiny DVIS++ and a tiny BEiT-3 on moving shapes, from their released files to a report, and its variants."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_refcoco
import tiny_beit3
import tiny_dvis
import tiny_sam2
import torch
from odd_videos import call

from rvos_cache.media.mask_png import read_mask_png
from rvos_cache.shapes import write_shapes
from rvos_cache.store import SelectionCache, TextCache, TrackCache, read_card, verify
from rvos_select.evaluation import evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.runs.checkpoint import load_selector
from rvos_select.selectors.dervos import Dervos

pytestmark = pytest.mark.slow
SENTENCES, SIDE = 3, 64
MODULE = {"width": 16, "hidden": 16, "sem_layers": 1, "cfma_layers": 1, "mgis_layers": 1, "motion_queries": 3, "clip_frames": 4}
TRAINING = {"epochs": 1, "batch": "clip", "batch_size": 2, "clip.frames": 3, "optim.lr": 1e-3}
TRACKER = {"side": SIDE, "pool": 4, "max_tracks": 5}


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """Values of two ways are compared; on a GPU they round differently."""
    with tiny_sam2.without_gpu():
        yield


def run(*words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, None, *words)[0] == 0, words


def sets(values: dict[str, Any], prefix: str = "", option: str = "--set") -> list[str]:
    return [word for name, value in values.items() for word in (option, f"{prefix}{name}={value}")]


def few_sentences(root: Path, splits: tuple[str, ...], count: int = SENTENCES) -> None:
    for split in splits:
        path = root / split / "meta_expressions.json"
        videos = json.loads(path.read_text())["videos"]
        for video in videos.values():
            video["expressions"] = dict(list(video["expressions"].items())[:count])
        path.write_text(json.dumps({"videos": videos}))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, converted checkpoints, caches, a run, its selections and masks; tests do not change them."""
    out = tmp_path_factory.mktemp("dervos")
    write_shapes(out / "data", 2, 3)
    few_sentences(out / "data", ("train", "valid_u"))
    torch.save({"model": tiny_dvis.released_names()}, out / "dvis.pth")
    torch.save({"model": tiny_beit3.official_tensors()}, out / "beit3.pth")
    run("convert-dvis", out / "dvis.pth", "--out", out / "dvis")
    run("convert-beit3", out / "beit3.pth", tiny_beit3.SPM, "--out", out / "beit3")
    words = ["--tracker", "dvis", "--set", f"checkpoint={out / 'dvis'}", *sets(TRACKER)]
    words += ["--encoder", "beit3", "--text-set", f"checkpoint={out / 'beit3'}"]
    words += ["--also", "frames", *sets({"square": SIDE, "resample": "bicubic"}, "frames.", "--also-set")]
    run("extract-all", "--dataset", "mevis", "--root", out / "data", "--split", "train", "--split", "valid_u", *words,
        "--out", out / "cache")  # fmt: skip
    training = [*caches(out, "train"), *caches(out, "valid_u", "--valid-"), "--selector", "dervos"]
    run("train", *training, *sets(TRAINING), *sets(MODULE, "config."), "--out", out / "run")
    run("predict", "--run", out / "run", *caches(out, "valid_u"), "--out", out / "s.zarr")
    run("merge", "--selections", out / "s.zarr", *tracks(out, "valid_u"), "--out", out / "masks")
    return out


def tracks(work: Path, split: str, prefix: str = "--", frames: bool = True) -> list[object]:
    names = ("dvis", "frames") if frames else ("dvis",)
    return [word for name in names for word in (f"{prefix}cache", work / f"cache/{split}/{name}.zarr")]


def caches(work: Path, split: str, prefix: str = "--", frames: bool = True) -> list[object]:
    return [*tracks(work, split, prefix, frames), f"{prefix}text", work / f"cache/{split}/text-beit3.zarr"]


def scores_of(path: Path) -> dict[tuple[str, int], np.ndarray]:
    cache = SelectionCache(path)
    return {(v, i): s.scores for v in cache.video_ids() for i, s in enumerate(cache.selections(v))}


def assert_same_scores(first: Path, second: Path, tolerance: float = 1e-5) -> None:
    a, b = scores_of(first), scores_of(second)
    assert a.keys() == b.keys() and a
    for key, values in a.items():
        np.testing.assert_allclose(values, b[key], atol=tolerance, rtol=0)


def test_every_cache_is_whole(work: Path) -> None:
    paths = [*(work / "cache").rglob("*.zarr"), work / "s.zarr"]
    assert len(paths) == 7 and not [fault for path in paths for fault in verify(path)]


def test_the_run_has_the_settings_of_its_caches(work: Path) -> None:
    model = load_selector(work / "run")
    assert isinstance(model, Dervos)
    c = model.config
    assert (c.side, c.resample, c.map_channels) == (SIDE, "bicubic", tiny_dvis.CHANNELS)
    assert (c.token_channels, c.word_channels) == (tiny_dvis.WIDTH, tiny_beit3.WIDTH)
    record = json.loads((work / "run/settings.json").read_text())
    assert record["frozen"] == {"beit3": read_card(work / "cache/train/text-beit3.zarr").weights["beit3"]}
    row = json.loads((work / "run/metrics.jsonl").read_text().splitlines()[0])
    assert {"train/loss", "train/class", "train/matched_iou", "train/uncovered", "valid/jf"} <= row.keys()


def test_no_video_without_an_answer(work: Path) -> None:
    selections = SelectionCache(work / "s.zarr")
    assert selections.card.extra["empty"] == "top1"
    for video_id in selections.video_ids():
        folder = work / "masks" / video_id
        assert len(list(folder.iterdir())) == SENTENCES


def test_frames_of_the_dataset_are_those_of_the_cache(work: Path, tmp_path: Path) -> None:
    run("predict", "--run", work / "run", *caches(work, "valid_u", frames=False), "--out", tmp_path / "s.zarr")
    assert_same_scores(tmp_path / "s.zarr", work / "s.zarr")


def test_evaluate_and_report(work: Path, tmp_path: Path) -> None:
    own = ["--selections", work / "s.zarr", *tracks(work, "valid_u")]
    run("evaluate", *own, "--json", tmp_path / "a.json")
    assert 0 <= json.loads((tmp_path / "a.json").read_text())["jf"] <= 1
    run("report", "--run", work / "run", *own, "--out", tmp_path / "report")
    assert (tmp_path / "report/index.html").exists()


def test_ask_gives_the_masks_of_the_cached_route(work: Path, tmp_path: Path) -> None:
    selections = SelectionCache(work / "s.zarr")
    video_id = selections.video_ids()[0]
    expression = TrackCache(work / "cache/valid_u/dvis.zarr").info(video_id).expressions[0]
    video = work / "data/valid_u/JPEGImages" / video_id
    run("ask", video, expression.text, "--run", work / "run", "--out", tmp_path / "ask")
    (own,) = [path for path in (tmp_path / "ask").rglob("masks*") if path.is_dir()]
    files = sorted(own.rglob("*.png"))
    assert files
    for path in files:
        expected = work / "masks" / video_id / expression.expression_id / path.name
        size = TrackCache(work / "cache/valid_u/dvis.zarr").info(video_id).size
        assert np.array_equal(read_mask_png(path, size), read_mask_png(expected, size))
    assert list((tmp_path / "ask/cache").glob("frames-*.zarr"))


def test_ask_with_a_run_without_a_cache_of_frames(work: Path, tmp_path: Path) -> None:
    own = [*caches(work, "train", frames=False), "--set", "hold_out=0", "--set", f"config.side={SIDE}"]
    run("train", *own, "--selector", "dervos", *sets(TRAINING), *sets(MODULE, "config."), "--out", tmp_path / "run")
    video = next((work / "data/valid_u/JPEGImages").iterdir())
    run("ask", video, "the red square", "--run", tmp_path / "run", "--out", tmp_path / "ask")
    (frames,) = (tmp_path / "ask/cache").glob("frames-*.zarr")
    assert read_card(frames).settings["short_side"] == 0


def test_a_split_without_ground_truth_is_predicted(work: Path, tmp_path: Path) -> None:
    """The tracker measures nothing there, and the scores are those of the same videos with ground truth."""
    root = tmp_path / "data/valid"
    shutil.copytree(work / "data/valid_u", root)
    (root / "mask_dict.json").unlink()
    path = root / "meta_expressions.json"
    videos = json.loads(path.read_text())
    for video in videos["videos"].values():
        for expression in video["expressions"].values():
            del expression["anno_id"]
    path.write_text(json.dumps(videos))
    words = ["--tracker", "dvis", "--set", f"checkpoint={work / 'dvis'}", *sets(TRACKER)]
    words += ["--encoder", "beit3", "--text-set", f"checkpoint={work / 'beit3'}"]
    run("extract-all", "--dataset", "mevis", "--root", tmp_path / "data", "--split", "valid", *words, "--out", tmp_path / "cache")
    run("predict", "--run", work / "run", *caches(tmp_path, "valid", frames=False), "--out", tmp_path / "s.zarr")
    assert_same_scores(tmp_path / "s.zarr", work / "s.zarr")


@pytest.mark.parametrize(
    ("selector", "values"),
    [
        ("sola", {"config.width": 16, "config.layers": 1, "config.heads": 2, "batch": "video"}),
        ("dervos", {"config.understanding": "words", "config.match_cost": "counts", **TRAINING}),
        ("dervos", {"config.match_scope": "video", "config.visible_only": True, "config.tais": "direct", **TRAINING}),
        ("dervos", {"config.queries": "tokens", "config.store_bytes": 10**7, "micro_batch": 1, **TRAINING}),
    ],
    ids=["sola", "words", "direct", "stored"],
)
def test_other_selectors_and_variants_on_the_same_caches(
    work: Path, tmp_path: Path, selector: str, values: dict[str, Any]
) -> None:
    small = sets(MODULE, "config.") if selector == "dervos" else []
    run("train", *caches(work, "train"), *caches(work, "valid_u", "--valid-"), "--selector", selector, *small,
        *sets({"epochs": 1, **values}), "--out", tmp_path / "run")  # fmt: skip
    run("predict", "--run", tmp_path / "run", *caches(work, "valid_u"), "--out", tmp_path / "s.zarr")
    assert scores_of(tmp_path / "s.zarr").keys() == scores_of(work / "s.zarr").keys()


def test_words_alone_on_a_cache_of_flow(work: Path, tmp_path: Path) -> None:
    """By changing the selector alone: any tracker, any words."""
    words = ["--dataset", "mevis", "--root", work / "data", "--split", "train", "--tracker", "flow", "--encoder", "hashed"]
    run("extract-all", *words, "--out", tmp_path / "cache")
    values = {"config.understanding": "words", "config.match_cost": "counts", "hold_out": 0.5, **TRAINING}
    cache = tmp_path / "cache/train/flow.zarr"
    run("train", "--cache", cache, "--selector", "dervos", *sets(MODULE, "config."), *sets(values), "--out", tmp_path / "run")
    run("predict", "--run", tmp_path / "run", "--cache", cache, "--out", tmp_path / "s.zarr")
    assert scores_of(tmp_path / "s.zarr") and not load_selector(tmp_path / "run").config.map_channels


def test_images_and_odd_sentences(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T = 1, one word, no verb, no word at all, more pieces than BEiT-3 reads; trained on and predicted."""
    sentences = ("box", "the left one", "?!", "the box that is running " * 30, "running")
    monkeypatch.setattr(
        test_refcoco, "EXPRESSIONS", [(n, k, text) for (n, k, _), text in zip(test_refcoco.EXPRESSIONS, sentences)]
    )
    test_refcoco.write_refcoco(tmp_path / "data")
    words = ["--tracker", "dvis", "--set", f"checkpoint={work / 'dvis'}", *sets(TRACKER)]
    words += ["--encoder", "beit3", "--text-set", f"checkpoint={work / 'beit3'}"]
    run(
        "extract-all",
        "--dataset",
        "refcoco",
        "--root",
        tmp_path / "data",
        "--split",
        "train",
        *words,
        "--out",
        tmp_path / "cache",
    )
    own = caches(tmp_path, "train", frames=False)
    values = {**TRAINING, "clip.frames": 2, "hold_out": 0, "config.side": SIDE}
    run("train", *own, "--selector", "dervos", *sets(values), *sets(MODULE, "config."), "--out", tmp_path / "run")
    run("predict", "--run", tmp_path / "run", *own, "--out", tmp_path / "s.zarr")
    scores = scores_of(tmp_path / "s.zarr")
    assert len(scores) == len(sentences) and all(len(own) and np.isfinite(own).all() for own in scores.values())
    cache = TextCache(tmp_path / "cache/train/text-beit3.zarr")
    lengths = [len(own.ids) for v in cache.video_ids() for own in cache.words(v) if own.ids is not None]
    assert max(lengths) == 40 and min(lengths) <= 4


@pytest.mark.parametrize("understanding", ["beit3", "words"])
def test_eight_expressions_are_learned_to_the_oracle(work: Path, tmp_path: Path, understanding: str) -> None:
    """Tracks of flow, whose oracle is high; a BEiT-3 of random weights still tells pairs of a frame and a sentence apart."""
    write_shapes(tmp_path / "data", 5, 6)
    few_sentences(tmp_path / "data", ("train",), 2)
    words = ["--dataset", "mevis", "--root", tmp_path / "data", "--split", "train", "--out", tmp_path / "cache"]
    words += ["--encoder", "beit3", "--text-set", f"checkpoint={work / 'beit3'}"]
    run("extract-all", *words, "--tracker", "flow", "--also", "frames", "--also-set", "frames.square=64",
        "--also-set", "frames.resample=bicubic")  # fmt: skip
    own = [word for name in ("flow", "frames") for word in ("--cache", tmp_path / f"cache/train/{name}.zarr")]
    module = {"width": 64, "hidden": 128, "sem_layers": 1, "cfma_layers": 2, "mgis_layers": 1, "store_bytes": 10**9}
    training = {"epochs": 80, "batch": "clip", "batch_size": 8, "clip.frames": 8, "optim.lr": 1e-3, "optim.schedule": "constant"}
    run("train", *own, "--selector", "dervos", *sets({**training, "hold_out": 0}), *sets(module, "config."),
        "--set", f"config.understanding={understanding}", "--set", "config.match_cost=counts", "--out", tmp_path / "run")  # fmt: skip
    run("predict", "--run", tmp_path / "run", *own, "--out", tmp_path / "s.zarr")
    scores = evaluate_selections(tmp_path / "s.zarr", [tmp_path / "cache/train/flow.zarr", tmp_path / "cache/train/frames.zarr"])
    assert len(scores["expressions"]) == 8
    assert scores["jf"] >= 0.95 * oracle([tmp_path / "cache/train/flow.zarr"])["jf"]
