"""SOLA's steps with tiny SAM 2, GroundingDINO and RoBERTa checkpoints on two videos of moving shapes: grid, box and gt tracks.

As in SOLA, training reads gt and grid tracks, inference grid and box tracks.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sam2
from odd_videos import Result, call
from text_fixtures import tiny_roberta

from rvos_cache.media.mask_png import read_mask_png
from rvos_cache.shapes import write_shapes
from rvos_cache.store import SelectionCache, TrackCache, content_digest, open_cache, verify
from rvos_cache.trackers.sam2.tracker import Sam2Box
from rvos_cache.types import VIDEO

pytestmark = pytest.mark.slow  # whole runs; left to test-all

SENTENCES = 4
"""Sentences of each video; the others are removed."""
FEW: dict[str, dict[str, Any]] = {
    "sam2-gt": {},
    "sam2-grid": {**tiny_sam2.GRID, "prompt_every": "half", "max_tracks": 4},
    "sam2-box": {**tiny_sam2.BOX, "prompt_every": "half"},
}
"""Settings of each tracker with which it has a few tracks."""
SMALL = {"epochs": 2, "batch": "video", "optim.lr": 1e-3, "config.width": 32, "config.heads": 4}


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """One test forks a process, which CUDA does not allow; and contents are compared to the last bit."""
    with tiny_sam2.without_gpu():
        yield


def read_meta(root: Path, split: str) -> dict[str, Any]:
    """The videos of a split as in its meta_expressions.json."""
    return json.loads((root / split / "meta_expressions.json").read_text())["videos"]


def keep_expressions(root: Path, split: str, expressions: slice) -> None:
    """Remove all other sentences of a split."""
    videos = read_meta(root, split)
    for video in videos.values():
        video["expressions"] = dict(list(video["expressions"].items())[expressions])
    (root / split / "meta_expressions.json").write_text(json.dumps({"videos": videos}))


def run(*words: object) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        return call(patch, None, *words)


def set_options(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def split_options(root: Path, split: str) -> list[object]:
    return ["--dataset", "mevis", "--root", root, "--split", split]


def extract_command(root: Path, split: str, tracker: str, out: Path) -> list[object]:
    """The arguments of `rvos-cache extract`."""
    values = {"checkpoint": tiny_sam2.shared_checkpoint(), **FEW[tracker]}
    if tracker == "sam2-box":
        values["grounding_checkpoint"] = tiny_sam2.shared_grounding()
    return ["extract", *split_options(root, split), "--tracker", tracker, *set_options(values), "--out", out]


def extract_text(root: Path, split: str, checkpoint: Path, out: Path) -> None:
    options = ["--encoder", "roberta", "--set", f"checkpoint={checkpoint}", "--out", out]
    assert run("extract-text", *split_options(root, split), *options)[0] == 0


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, caches, a trained run, its selections and masks; tests do not change it."""
    out = tmp_path_factory.mktemp("sam2")
    write_shapes(out / "data", 2, 3)
    for split in ("train", "valid_u"):
        keep_expressions(out / "data", split, slice(SENTENCES))
    (out / "roberta").mkdir()
    sentences = [e["exp"] for video in read_meta(out / "data", "train").values() for e in video["expressions"].values()]
    tiny_roberta(out / "roberta", sentences)
    for split, tracker, name in (
        ("train", "sam2-gt", "sam2-gt"),
        ("train", "sam2-grid", "train-grid"),
        ("valid_u", "sam2-grid", "sam2-grid"),
        ("valid_u", "sam2-box", "sam2-box"),
    ):
        assert run(*extract_command(out / "data", split, tracker, out / f"{name}.zarr"))[0] == 0
    for split in ("train", "valid_u"):
        extract_text(out / "data", split, out / "roberta", out / f"text-{split}.zarr")
    train = ["--cache", out / "sam2-gt.zarr", "--cache", out / "train-grid.zarr", "--text", out / "text-train.zarr"]
    valid = ["--valid-cache", out / "sam2-grid.zarr", "--valid-cache", out / "sam2-box.zarr"]
    valid += ["--valid-text", out / "text-valid_u.zarr"]
    assert run("train", *train, *valid, "--selector", "sola", *set_options(SMALL), "--out", out / "run")[0] == 0
    predict(out, out)
    caches = ["--cache", out / "sam2-grid.zarr", "--cache", out / "sam2-box.zarr"]
    assert run("merge", "--selections", out / "s.zarr", *caches, "--top1", "--out", out / "masks")[0] == 0
    return out


def predict(work: Path, folder: Path) -> None:
    """The run of `work` on the caches of `folder`."""
    caches = ["--cache", folder / "sam2-grid.zarr", "--cache", folder / "sam2-box.zarr", "--text", folder / "text-valid_u.zarr"]
    assert run("predict", "--run", work / "run", *caches, "--out", folder / "s.zarr")[0] == 0


def only(cache: Path) -> str:
    """The one video of a cache."""
    (video_id,) = open_cache(cache).video_ids()
    return video_id


def test_pngs_and_selections_score_the_same(work: Path) -> None:
    options = ["--predictions", work / "masks", "--json", work / "png.json"]
    assert run("evaluate", *split_options(work / "data", "valid_u"), *options)[0] == 0
    caches = ["--cache", work / "sam2-grid.zarr", "--cache", work / "sam2-box.zarr"]
    assert run("evaluate", "--selections", work / "s.zarr", *caches, "--top1", "--json", work / "sel.json")[0] == 0
    pngs, direct = (json.loads((work / name).read_text()) for name in ("png.json", "sel.json"))
    expected = {f"{video}/{e}" for video, meta in read_meta(work / "data", "valid_u").items() for e in meta["expressions"]}
    assert pngs["expressions"].keys() == direct["expressions"].keys() == expected and len(expected) == SENTENCES
    assert pngs["jf"] == pytest.approx(direct["jf"], abs=1e-9) and 0 < pngs["jf"] < 1


def test_the_masks_are_those_of_the_best_candidate(work: Path) -> None:
    video_id = only(work / "s.zarr")
    caches = [TrackCache(work / f"{name}.zarr") for name in ("sam2-grid", "sam2-box")]
    tracks = [cache.masks(video_id) for cache in caches]
    grid = tracks[0].shape[0]
    for selection in SelectionCache(work / "s.zarr").selections(video_id):
        best = int(np.argmax(np.where(selection.candidates, selection.scores, -1)))
        masks, row = (tracks[0], best) if best < grid else (tracks[1], best - grid)
        for t, name in enumerate(caches[0].info(video_id).frame_names):
            mask = read_mask_png(work / "masks" / video_id / selection.expression_id / f"{name}.png", masks.size)
            np.testing.assert_array_equal(mask, masks.decode(row, t))


def test_boxes_of_one_expression_are_no_candidates_of_another(work: Path) -> None:
    video_id = only(work / "s.zarr")
    grid, box = (TrackCache(work / f"{name}.zarr").info(video_id) for name in ("sam2-grid", "sam2-box"))
    assert (grid.prompt == VIDEO).all() and len(grid.prompt) and set(box.prompt) == set(range(SENTENCES))
    for e, selection in enumerate(SelectionCache(work / "s.zarr").selections(video_id)):
        assert selection.expression_id == box.expressions[e].expression_id
        expected = np.concatenate([np.ones(len(grid.prompt), bool), box.prompt == e])
        np.testing.assert_array_equal(selection.candidates, expected)
        assert not selection.scores[~expected].any() and selection.scores[expected].all()


@pytest.mark.slow
def test_the_scores_of_an_expression_do_not_depend_on_the_others(work: Path, tmp_path: Path) -> None:
    """The same video with one sentence, through extraction and prediction: the boxes of other sentences change no score."""
    shutil.copytree(work / "data", tmp_path / "data")
    keep_expressions(tmp_path / "data", "valid_u", slice(2, 3))
    for tracker in ("sam2-grid", "sam2-box"):
        assert run(*extract_command(tmp_path / "data", "valid_u", tracker, tmp_path / f"{tracker}.zarr"))[0] == 0
    extract_text(tmp_path / "data", "valid_u", work / "roberta", tmp_path / "text-valid_u.zarr")
    predict(work, tmp_path)
    (alone,) = SelectionCache(tmp_path / "s.zarr").selections(only(tmp_path / "s.zarr"))
    together = SelectionCache(work / "s.zarr").selections(only(work / "s.zarr"))[2]
    assert alone.expression_id == together.expression_id and alone.candidates.all()
    np.testing.assert_allclose(alone.scores, together.scores[together.candidates], atol=1e-6)


def test_tracks_of_ground_truth_are_for_training_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    caches = ["--cache", work / "sam2-gt.zarr", "--text", work / "text-train.zarr", "--out", work / "cheat.zarr"]
    with pytest.MonkeyPatch.context() as patch:
        code, stderr = call(patch, capsys, "predict", "--run", work / "run", *caches)
    assert code == 1 and "ground truth" in stderr and not (work / "cheat.zarr").exists()


def extract_until_killed(command: list[object], out: Path) -> None:
    """In a child process: `extract`, killed when the second video is tracked but not yet written."""
    video_ids: list[str] = []
    track = Sam2Box.track

    def track_or_die(self: Any, video: Any, *rest: Any) -> Any:
        tracks = track(self, video, *rest)
        video_ids.append(video.video_id)
        while len(video_ids) == 2:
            if list((out / "videos").iterdir()):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
        return tracks

    Sam2Box.track = track_or_die  # type: ignore[method-assign]
    run(*command)


@pytest.mark.slow
def test_a_killed_extraction_resumes_to_the_same_content(work: Path, tmp_path: Path) -> None:
    """The first frames of both videos as one split without ground truth, with boxes."""
    both = {**read_meta(work / "data", "train"), **read_meta(work / "data", "valid_u")}
    split = tmp_path / "data/valid"
    for video_id, video in both.items():
        video["frames"] = video["frames"][:4]
        (source,) = (path for path in (work / "data").glob(f"*/JPEGImages/{video_id}") if not path.parent.is_symlink())
        (split / "JPEGImages" / video_id).mkdir(parents=True)
        for name in video["frames"]:
            shutil.copy(source / f"{name}.jpg", split / "JPEGImages" / video_id)
    (split / "meta_expressions.json").write_text(json.dumps({"videos": both}))
    parts, whole = tmp_path / "parts.zarr", tmp_path / "whole.zarr"
    command = extract_command(tmp_path / "data", "valid", "sam2-box", parts)
    child = get_context("fork").Process(target=extract_until_killed, args=(command, parts))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(open_cache(parts).video_ids()) == 1 and list(verify(parts)) == []
    assert run(*command)[0] == 0
    assert run(*extract_command(tmp_path / "data", "valid", "sam2-box", whole))[0] == 0
    assert set(open_cache(parts).video_ids()) == set(both)
    assert content_digest(parts) == content_digest(whole) and list(verify(parts)) == []
    assert not list((parts / ".staging").iterdir())
