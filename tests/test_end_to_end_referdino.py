"""ReferDINO's steps with a tiny released file on moving shapes: import, extract, predict, merge, ask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sam2
import torch
from odd_videos import call
from released_referdino import SMALL, live, shared_grounding, shared_released

from rvos_cache.datasets import open_dataset
from rvos_cache.media.mask_png import read_mask_png
from rvos_cache.shapes import write_shapes
from rvos_cache.store import SelectionCache, TrackCache, read_card, verify
from rvos_select.runs.checkpoint import load_selector, run_settings

pytestmark = pytest.mark.slow  # whole runs; left to test-all

SENTENCES = ("the red square", "The bird that is moving left.")


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """Values of two ways are compared; on a GPU they round differently."""
    with tiny_sam2.without_gpu():
        yield


def run(*words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, None, *words)[0] == 0, words


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that fails."""
    with pytest.MonkeyPatch.context() as patch:
        code, stderr = call(patch, capsys, *words)
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1, stderr
    return errors[0]


def sets(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a run of the released file, a cache of its tracker, selections and masks; tests do not change them."""
    out = tmp_path_factory.mktemp("referdino")
    write_shapes(out / "data", 2, 3)
    path = out / "data/valid_u/meta_expressions.json"
    videos = json.loads(path.read_text())["videos"]
    for video in videos.values():
        # Short ones: the tiny model reads 32 tokens.
        chosen = list(video["expressions"].items())[: len(SENTENCES)]
        video["expressions"] = {number: {**one, "exp": text} for (number, one), text in zip(chosen, SENTENCES)}
    path.write_text(json.dumps({"videos": videos}))
    run("import-referdino", shared_released(), "--grounding", shared_grounding(), "--out", out / "run")
    split = ["--dataset", "mevis", "--root", out / "data", "--split", "valid_u"]
    tracker = {"checkpoint": out / "run/upstream", "masks": "head", **SMALL}
    run("extract", *split, "--tracker", "gdino-queries", *sets(tracker), "--out", out / "c.zarr")
    run("extract-text", *split, "--encoder", "hashed", "--out", out / "t.zarr")
    caches = ["--cache", out / "c.zarr", "--text", out / "t.zarr"]
    run("predict", "--run", out / "run", *caches, "--out", out / "s.zarr")
    run("merge", "--selections", out / "s.zarr", "--cache", out / "c.zarr", "--out", out / "masks")
    return out


def test_predictions_are_those_of_the_released_inference(work: Path) -> None:
    """Scores: the mean of the probabilities; masks: all above 0.2, else the best."""
    source = open_dataset("mevis", work / "data", "valid_u")
    (video_id,) = source.video_ids()
    video, expressions = source.video(video_id), source.expressions(video_id)
    assert len(expressions) == len(SENTENCES)
    selections = SelectionCache(work / "s.zarr").selections(video_id)
    for e, (expression, selection) in enumerate(zip(expressions, selections, strict=True)):
        expected = live(video, expression.text.rstrip("."))
        scores = expected["scores"].mean(1)
        # Those of the other expression's tracks are 0.
        own = np.split(selection.scores, len(expressions))
        np.testing.assert_allclose(own.pop(e), scores.numpy(), atol=2e-3)
        assert not np.any(own)
        selected = scores > 0.2 if bool((scores > 0.2).any()) else scores == scores.max()
        assert (scores - 0.2).abs().min() > 0.01
        union = expected["masks"][selected].any(0).numpy()
        for t, name in enumerate(video.frame_names):
            mask = read_mask_png(work / "masks" / video_id / expression.expression_id / f"{name}.png", video.size)
            assert (mask.astype(bool) != union[t]).mean() < 1e-3
        assert union.any() and not union.all()
    assert list(verify(work / "c.zarr")) == []


def test_the_run_has_the_enhancer_and_the_box_head_of_the_file(work: Path) -> None:
    released = torch.load(shared_released(), weights_only=True)["model_state_dict"]
    module = load_selector(work / "run").state_dict()
    names = {f"enhancer.{name.removeprefix('temporal_decoder.0.')}": name for name in released if "temporal_decoder.0." in name}
    names |= {f"box.{name.removeprefix('bbox_embed.0.')}": name for name in released if name.startswith("bbox_embed.0.")}
    assert module.keys() == names.keys()
    assert all(torch.equal(module[name], released[source]) for name, source in names.items())


def test_the_record_names_what_ask_runs(work: Path) -> None:
    settings, card = run_settings(work / "run"), read_card(work / "c.zarr")
    recorded = settings["cards"]["tracks"][0]
    assert recorded["weights"] == card.weights and len(card.weights) == 2
    assert recorded["settings"]["checkpoint"] == str(work / "run/upstream") and recorded["settings"]["masks"] == "head"
    assert settings["imported"]["checkpoint"] == str(shared_released())


def test_a_checkpoint_named_in_another_way_is_no_other_setting(
    work: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Only the small sizes of this test differ from those of the run."""
    (tmp_path / "link").symlink_to(work / "run")
    split = ["--dataset", "mevis", "--root", work / "data", "--split", "valid_u"]
    tracker = {"checkpoint": tmp_path / "link/upstream", "masks": "head", **SMALL}
    run("extract", *split, "--tracker", "gdino-queries", *sets(tracker), "--out", tmp_path / "c.zarr")
    caches = ["--cache", tmp_path / "c.zarr", "--text", work / "t.zarr"]
    recwarn.clear()
    run("predict", "--run", work / "run", *caches, "--out", tmp_path / "s.zarr")
    assert not [w for w in recwarn if "checkpoint" in str(w.message)]
    (video_id,) = TrackCache(tmp_path / "c.zarr").video_ids()
    one, two = (SelectionCache(folder / "s.zarr").selections(video_id) for folder in (tmp_path, work))
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(one, two, strict=True))


def test_the_run_answers_a_question(work: Path, tmp_path: Path) -> None:
    own = shutil.copytree(work / "run", tmp_path / "run")
    settings = json.loads((own / "settings.json").read_text())
    settings["cards"]["tracks"][0]["settings"] |= SMALL
    (own / "settings.json").write_text(json.dumps(settings))
    (folder,) = (work / "data/valid_u/JPEGImages").iterdir()
    run("ask", folder, "the red square", "--run", own, "--out", tmp_path / "ask")
    assert list((tmp_path / "ask").rglob("*.png"))


def test_what_cannot_be_imported_is_one_line(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(shared_released(), weights_only=True)["model_state_dict"]
    torch.save({n: t for n, t in state.items() if n != "temporal_decoder.0.norm.1.bias"}, tmp_path / "cut.pth")
    grounding = ["--grounding", shared_grounding()]
    line = fails(capsys, "import-referdino", tmp_path / "cut.pth", *grounding, "--out", tmp_path / "run")
    assert "'temporal_decoder.0.norm.1.bias' is missing" in line
    assert "exists already" in fails(capsys, "import-referdino", shared_released(), *grounding, "--out", work / "run")
    assert not (tmp_path / "run").exists()
