"""SSA's steps with a tiny CLIP on moving shapes: live, imported from a released checkpoint, and cached on tracks of other trackers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_clip
import tiny_sam2
import tiny_vita
import torch
from odd_videos import call

from rvos_cache.media.mask_png import read_mask_png
from rvos_cache.shapes import write_shapes
from rvos_cache.store import SelectionCache, TrackCache, verify
from rvos_select.runs.checkpoint import load_selector, read_json
from rvos_select.selectors.ssa import Ssa

pytestmark = pytest.mark.slow  # whole runs; left to test-all

SENTENCES = 2
MODULE = {
    "width": 32, "hidden": 32, "pixel_hidden": 32, "fusion_width": 32, "pixel_layers": 1, "frame_layers": 2, "video_layers": 1,
    "points": 60, "handed_on": 2,
}  # fmt: skip
LIVE = {**MODULE, "queries": 4, "short_side": 64}
TRAINING = {
    "epochs": 2, "batch": "clip", "batch_size": 2, "clip.frames": 3, "clip.within": 0, "optim.lr": 1e-3,
    "optim.rates": "{adapters = 0.1}",
}  # fmt: skip


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
    assert code == 1, stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def sets(values: dict[str, Any], prefix: str = "") -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{prefix}{name}={value}")]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a converted CLIP, caches of frames and words, a live run, its selections and masks; tests do not change them."""
    out = tmp_path_factory.mktemp("ssa")
    write_shapes(out / "data", 2, 3)
    for split in ("train", "valid_u"):
        path = out / "data" / split / "meta_expressions.json"
        videos = json.loads(path.read_text())["videos"]
        for video in videos.values():
            video["expressions"] = dict(list(video["expressions"].items())[:SENTENCES])
        path.write_text(json.dumps({"videos": videos}))
    tiny_clip.write_tiny_clip(out / "clip")
    both = ["--split", "train", "--split", "valid_u", "--out", out / "cache"]
    words = ["--encoder", "clip", "--text-set", f"checkpoint={out / 'clip'}"]
    run(
        "extract-all",
        "--dataset",
        "mevis",
        "--root",
        out / "data",
        "--tracker",
        "frames",
        "--set",
        "short_side=80",
        *words,
        *both,
    )
    train = ["--cache", out / "cache/train/frames.zarr", "--valid-cache", out / "cache/valid_u/frames.zarr", "--selector", "ssa"]
    run(
        "train",
        *train,
        *sets(TRAINING),
        *sets({**LIVE, "clip": out / "clip"}, "config."),
        "--set",
        "micro_batch=1",
        "--out",
        out / "run",
    )
    valid = ["--cache", out / "cache/valid_u/frames.zarr"]
    run("predict", "--run", out / "run", *valid, "--out", out / "s.zarr")
    run("merge", "--selections", out / "s.zarr", *valid, "--top1", "--out", out / "masks")
    return out


def test_pngs_and_selections_score_the_same(work: Path) -> None:
    split = ["--dataset", "mevis", "--root", work / "data", "--split", "valid_u"]
    run("evaluate", *split, "--predictions", work / "masks", "--json", work / "png.json")
    caches = ["--selections", work / "s.zarr", "--cache", work / "cache/valid_u/frames.zarr"]
    run("evaluate", *caches, "--top1", "--json", work / "sel.json")
    pngs, direct = (json.loads((work / name).read_text()) for name in ("png.json", "sel.json"))
    assert len(direct["expressions"]) == SENTENCES and pngs["jf"] == pytest.approx(direct["jf"], abs=1e-9)
    run("report", "--run", work / "run", *caches, "--out", work / "report")
    html = (work / "report/index.html").read_text("utf-8")
    assert "ssa" in html and "oracle (perfect labels)" not in html


def test_masks_have_the_size_of_the_video_and_scores_are_probabilities(work: Path) -> None:
    (video_id,) = SelectionCache(work / "s.zarr").video_ids()
    for selection in SelectionCache(work / "s.zarr").selections(video_id):
        assert selection.scores.shape == (LIVE["queries"],) and 0 < selection.scores.min() < selection.scores.max() < 1
        assert selection.masks is not None and selection.masks.size == (96, 160)
        best = int(selection.scores.argmax())
        for t, name in enumerate(TrackCache(work / "cache/valid_u/frames.zarr").info(video_id).frame_names):
            mask = read_mask_png(work / "masks" / video_id / selection.expression_id / f"{name}.png", (96, 160))
            np.testing.assert_array_equal(mask, selection.masks.decode(best, t))
    assert list(verify(work / "s.zarr")) == []


def test_nothing_above_the_threshold_is_an_empty_mask(work: Path, tmp_path: Path) -> None:
    """SSA's own rule for MeViS; a dataset whose sentences name one object each takes the best query."""
    options = ["--selections", work / "s.zarr", "--cache", work / "cache/valid_u/frames.zarr", "--threshold", "0.999"]
    run("merge", *options, "--out", tmp_path / "masks")
    masks = [read_mask_png(path, (96, 160)) for path in (tmp_path / "masks").rglob("*.png")]
    assert masks and not any(mask.any() for mask in masks)
    module = load_selector(work / "run")
    assert (module.threshold, module.empty, module.top1_of_one, module.draws) == (0.5, "zeros", True, True)


def test_a_live_run_answers_a_question(work: Path, tmp_path: Path) -> None:
    (folder,) = (work / "data/valid_u/JPEGImages").iterdir()
    run("ask", folder, "the red square", "--run", work / "run", "--top1", "--out", tmp_path / "ask")
    assert len(list((tmp_path / "ask").rglob("*.png"))) == len(list(folder.iterdir()))


def test_a_run_starts_from_a_checkpoint(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From another run's weights, and from a Mask2Former's, which lacks what SSA adds."""
    module = load_selector(work / "run")
    released = {
        name: tensor for name, tensor in module.official().items() if name.startswith("sem_seg_head.") and "fusion" not in name
    }
    released["sem_seg_head.predictor.class_embed.weight"] = torch.zeros(134, 32)
    released["sem_seg_head.predictor.query_feat.weight"] = torch.zeros(100, 32)
    torch.save({"model": {name: 0 * tensor + 0.25 for name, tensor in released.items()}}, tmp_path / "coco.pth")
    train = ["train", "--cache", work / "cache/train/frames.zarr", "--valid-cache", work / "cache/valid_u/frames.zarr"]
    options = [
        *sets({**TRAINING, "epochs": 1, "optim.lr": 1e-9}),
        *sets({**LIVE, "clip": work / "clip"}, "config."),
        "--selector",
        "ssa",
    ]
    with pytest.MonkeyPatch.context() as patch:
        code, stderr = call(patch, capsys, *train, *options, "--set", f"init={tmp_path / 'coco.pth'}", "--out", tmp_path / "run")
    assert code == 0
    assert "start: 96 of 257 tensors" in stderr and "start: of another shape in the checkpoint are frame_decoder 1" in stderr
    assert "start: random are adapters 80, " in stderr and "2 of its tensors are not read; start.json" in stderr
    started = load_selector(tmp_path / "run")
    assert isinstance(started, Ssa)
    assert torch.allclose(started.frame_decoder.query_embed.weight, torch.tensor(0.25), atol=1e-4)
    assert started.video.class_embed.weight.std() > 0.01
    start = read_json(tmp_path / "run/start.json", "")
    assert start["other_shape"] == ["frame_decoder.class_embed.weight"]
    assert "frame_decoder.query_feat.weight" in start["unread"] and "text_projection.fc.weight" in start["not_filled"]
    run(*train, *options, "--set", f"init={work / 'run'}", "--out", tmp_path / "second")
    second = load_selector(tmp_path / "second").state_dict()
    assert all(torch.allclose(second[name], tensor, atol=1e-4) for name, tensor in module.state_dict().items())
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    line = fails(capsys, *train, *options, "--set", f"init={tmp_path / 'other.pth'}", "--out", tmp_path / "third")
    assert "none of its 1 tensors (a) agrees with Ssa's" in line


def released_checkpoint(module: Ssa, path: Path) -> Path:
    """The module with the tiny CLIP as a file of detectron2's format."""
    state = {
        name: tensor for name, tensor in tiny_clip.ssa_tensors(with_head=True).items() if name.startswith("backbone.clip_model.")
    }
    torch.save({"model": {**module.official(), **state, "criterion.empty_weight": torch.ones(2)}, "iteration": 7}, path)
    return path


def test_an_imported_checkpoint_predicts_as_its_run(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = load_selector(work / "run")
    assert isinstance(module, Ssa)
    checkpoint = released_checkpoint(module, tmp_path / "model_final.pth")
    merges = tiny_clip.write_merges(tmp_path / "merges.txt.gz")
    run("import-ssa", checkpoint, "--tokenizer", merges, "--out", tmp_path / "own")
    run("import-ssa", checkpoint, "--clip", work / "clip", "--out", tmp_path / "run")
    config = read_json(tmp_path / "run/settings.json", "")["resolved"]["config"]
    sizes = {name: value for name, value in LIVE.items() if name not in ("points", "short_side", "handed_on")}
    assert {name: config[name] for name in sizes} == sizes
    reference = tmp_path / "reference"
    shutil.copytree(work / "run", reference)
    for folder in (tmp_path / "own", tmp_path / "run"):
        imported = load_selector(folder)
        assert all(torch.equal(imported.state_dict()[name], tensor) for name, tensor in module.state_dict().items())
        settings = read_json(folder / "best/config.json", "")
        (folder / "best/config.json").write_text(json.dumps({**settings, "short_side": 64}))
        selections = tmp_path / f"{folder.name}.zarr"
        run("predict", "--run", folder, "--cache", work / "cache/valid_u/frames.zarr", "--out", selections)
        (video_id,) = SelectionCache(selections).video_ids()
        for one, two in zip(
            SelectionCache(selections).selections(video_id), SelectionCache(work / "s.zarr").selections(video_id)
        ):
            np.testing.assert_allclose(one.scores, two.scores, atol=1e-6)
    (folder,) = (work / "data/valid_u/JPEGImages").iterdir()
    run("ask", folder, "the red square", "--run", tmp_path / "own", "--out", tmp_path / "ask")


def test_wrong_checkpoints_are_not_imported(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = load_selector(work / "run")
    assert isinstance(module, Ssa)
    checkpoint = released_checkpoint(module, tmp_path / "model_final.pth")
    state = torch.load(checkpoint, weights_only=True)["model"]
    torch.save({"model": {n: t for n, t in state.items() if n != "resizer.layer_norm.bias"}}, tmp_path / "cut.pth")
    line = fails(capsys, "import-ssa", tmp_path / "cut.pth", "--clip", work / "clip", "--out", tmp_path / "run")
    assert "missing 1 (text_projection.layer_norm.bias)" in line
    torch.save({"model": module.official()}, tmp_path / "without.pth")
    assert "of CLIP, expected both" in fails(capsys, "import-ssa", tmp_path / "without.pth", "--out", tmp_path / "run")
    shutil.copytree(work / "clip", tmp_path / "other")
    from transformers import ConvNextModel

    tower = ConvNextModel.from_pretrained(tmp_path / "other/image")
    with torch.no_grad():
        tower.encoder.stages[0].layers[0].pwconv1.bias.add_(1)
    tower.save_pretrained(tmp_path / "other/image")
    line = fails(capsys, "import-ssa", checkpoint, "--clip", tmp_path / "other", "--out", tmp_path / "run")
    assert "its image tower is not the one inside" in line
    torch.save({"model": {**state, "resizer.fc.bias": state["resizer.fc.bias"] * torch.nan}}, tmp_path / "nan.pth")
    assert "resizer.fc.bias holds other than finite numbers" in fails(
        capsys, "import-ssa", tmp_path / "nan.pth", "--clip", work / "clip", "--out", tmp_path / "run"
    )
    assert not (tmp_path / "run").exists()


def test_the_frames_may_lie_in_any_trackers_cache(work: Path, tmp_path: Path) -> None:
    """A live module reads no tokens: where a cache has no frames, they are the dataset's."""
    source = ["--dataset", "mevis", "--root", work / "data", "--split", "valid_u"]
    run("extract", *source, "--tracker", "flow", "--out", tmp_path / "flow.zarr")
    texts = ["--text", work / "cache/valid_u/text-clip.zarr"]
    run("predict", "--run", work / "run", "--cache", tmp_path / "flow.zarr", *texts, "--out", tmp_path / "s.zarr")
    (video_id,) = SelectionCache(tmp_path / "s.zarr").video_ids()
    for one, two in zip(
        SelectionCache(tmp_path / "s.zarr").selections(video_id), SelectionCache(work / "s.zarr").selections(video_id)
    ):
        # Frames of 96 pixels became 80 in one cache before they became 64.
        np.testing.assert_allclose(one.scores, two.scores, atol=0.05)


def test_a_run_that_cannot_start_leaves_no_folder(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = [
        "train",
        "--cache",
        work / "cache/train/frames.zarr",
        "--selector",
        "ssa",
        *sets({**TRAINING, "optim.rates": "{adapter = 0.1}"}),
    ]
    line = fails(capsys, *train, *sets({**LIVE, "clip": work / "clip"}, "config."), "--out", tmp_path / "run")
    assert "no parameter of Ssa belongs to 'adapter'" in line and not (tmp_path / "run").exists()


def test_a_run_without_its_clip_says_so(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(work / "run", tmp_path / "run")
    config = read_json(tmp_path / "run/best/config.json", "")
    (tmp_path / "run/best/config.json").write_text(json.dumps({**config, "clip": str(tmp_path / "gone")}))
    line = fails(
        capsys, "predict", "--run", tmp_path / "run", "--cache", work / "cache/valid_u/frames.zarr", "--out", tmp_path / "s.zarr"
    )
    assert str(tmp_path / "gone") in line and "convert-clip" in line


TRACKERS: dict[str, dict[str, Any]] = {
    "flow": {},
    "vita": {**tiny_vita.SMALL, "max_tracks": 5},
    "sam2-grid": {**tiny_sam2.GRID, "prompt_every": "half", "max_tracks": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
def test_the_cached_form_reads_any_trackers_cache(work: Path, tmp_path: Path, tracker: str) -> None:
    """Another selector is another --selector; SOLA trains on the same cache."""
    checkpoints = {"vita": tiny_vita.shared_checkpoint, "sam2-grid": tiny_sam2.shared_checkpoint}
    settings = {**({"checkpoint": checkpoints[tracker]()} if tracker in checkpoints else {}), **TRACKERS[tracker]}
    for split in ("train", "valid_u"):
        source = ["--dataset", "mevis", "--root", work / "data", "--split", split]
        run("extract", *source, "--tracker", tracker, *sets(settings), "--out", tmp_path / f"{split}.zarr")
        run("pool-clip", tmp_path / f"{split}.zarr", *sets({"checkpoint": work / "clip", "short_side": 64}))
    texts = [work / f"cache/{split}/text-clip.zarr" for split in ("train", "valid_u")]
    train = [
        "train",
        "--cache",
        tmp_path / "train-clip.zarr",
        "--text",
        texts[0],
        "--valid-cache",
        tmp_path / "valid_u-clip.zarr",
    ]
    train += ["--valid-text", texts[1]]
    own = sets({**MODULE, "form": "cached"}, "config.")
    run(*train, "--selector", "ssa", *sets({**TRAINING, "epochs": 1}), *own, "--out", tmp_path / "ssa")
    run(
        *train,
        "--selector",
        "sola",
        *sets({"epochs": 1, "batch": "video", "config.width": 32, "config.heads": 4}),
        "--out",
        tmp_path / "sola",
    )
    valid = ["--cache", tmp_path / "valid_u-clip.zarr", "--text", texts[1]]
    run("predict", "--run", tmp_path / "ssa", *valid, "--out", tmp_path / "s.zarr")
    run(
        "evaluate",
        "--selections",
        tmp_path / "s.zarr",
        "--cache",
        tmp_path / "valid_u-clip.zarr",
        "--json",
        tmp_path / "scores.json",
    )
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert len(scores["expressions"]) == SENTENCES and 0 <= scores["jf"] <= 1
    (video_id,) = SelectionCache(tmp_path / "s.zarr").video_ids()
    tracks = TrackCache(tmp_path / "valid_u-clip.zarr").info(video_id).tracks
    assert tracks and all(len(s.scores) == tracks for s in SelectionCache(tmp_path / "s.zarr").selections(video_id))
