"""The commands of the READMEs, each in a process of its own, on a handful of moving-shapes videos."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from odd_videos import call
from PIL import Image

from rvos_cache.media.mask_png import read_mask_png
from rvos_cache.shapes import write_shapes
from rvos_cache.store import content_digest
from rvos_cache.system.counts import counted

# Each command of a test is a process of its own.
pytestmark = pytest.mark.timeout(300)
SMALL = [
    "--set", "epochs=2", "--set", "batch=video", "--set", "optim.lr=1e-3",
    "--set", "config.width=32", "--set", "config.heads=4",
]  # fmt: skip


def run(program: str, *arguments: object, code: int = 0) -> str:
    """The output of a command, stdout and then stderr. It must exit with status `code` and without a traceback."""
    module = {"rvos-cache": "rvos_cache.cli", "rvos-select": "rvos_select.cli"}[program]
    command = [sys.executable, "-c", f"from {module} import main; main()", *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    output = process.stdout + process.stderr
    assert "Traceback" not in output, output
    assert process.returncode == code, output
    return output


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, caches, a trained run, its selections and masks. Tests must not change these files.

    Made by the commands within this process, because each process of its own spends seconds on imports.
    """
    out = tmp_path_factory.mktemp("work")
    write_shapes(out / "data", 5, 3)

    def run(*arguments: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            assert call(patch, None, *arguments)[0] == 0

    for split, name in (("train", "train"), ("valid_u", "valid")):
        location = ["--dataset", "mevis", "--root", out / "data", "--split", split]
        run("extract", *location, "--tracker", "flow", "--out", out / f"{name}.zarr")
        run("extract-text", *location, "--encoder", "hashed", "--out", out / f"text-{name}.zarr")
    valid = ["--valid-cache", out / "valid.zarr", "--valid-text", out / "text-valid.zarr"]
    train = ["--cache", out / "train.zarr", "--text", out / "text-train.zarr", *valid]
    run("train", *train, "--selector", "sola", *SMALL, "--out", out / "run")
    cache = ["--cache", out / "valid.zarr"]
    run("predict", "--run", out / "run", *cache, "--text", out / "text-valid.zarr", "--out", out / "s.zarr")
    run("merge", "--selections", out / "s.zarr", *cache, "--out", out / "masks")
    return out


def test_pngs_and_selections_score_the_same(work: Path) -> None:
    location = ["--dataset", "mevis", "--root", work / "data", "--split", "valid_u"]
    run("rvos-select", "evaluate", *location, "--predictions", work / "masks", "--json", work / "png.json")
    selections = ["--selections", work / "s.zarr", "--cache", work / "valid.zarr"]
    run("rvos-select", "evaluate", *location, *selections, "--json", work / "sel.json")
    pngs, direct = (json.loads((work / name).read_text()) for name in ("png.json", "sel.json"))
    assert pngs["expressions"].keys() == direct["expressions"].keys()
    assert pngs["jf"] == pytest.approx(direct["jf"], abs=1e-9)
    assert pngs["jf"] == pytest.approx((pngs["j"] + pngs["f"]) / 2, abs=1e-12)


@pytest.mark.slow
def test_oracle_is_above_the_prediction(work: Path) -> None:
    run("rvos-select", "evaluate", "--selections", work / "s.zarr", "--cache", work / "valid.zarr", "--json", work / "p.json")
    run("rvos-select", "oracle", "--cache", work / "valid.zarr", "--json", work / "o.json")
    prediction, oracle = (json.loads((work / name).read_text()) for name in ("p.json", "o.json"))
    assert oracle["expressions"].keys() == prediction["expressions"].keys()
    assert oracle["jf"] > 0.5 and oracle["jf"] > prediction["jf"]


@pytest.mark.slow
def test_compare_prints_the_paired_difference(work: Path) -> None:
    selections = ["--selections", work / "s.zarr", "--cache", work / "valid.zarr"]
    for name, policy in (("above", []), ("best", ["--top1"])):
        run("rvos-select", "evaluate", *selections, *policy, "--json", work / f"{name}.json")
    printed = run("rvos-select", "compare", work / "above.json", work / "best.json", "--json", work / "difference.json")
    above, best = (json.loads((work / f"{name}.json").read_text()) for name in ("above", "best"))
    difference = json.loads((work / "difference.json").read_text())["jf"]
    assert difference["difference"] == pytest.approx(best["jf"] - above["jf"], abs=1e-9)
    assert "J&F" in printed


@pytest.mark.slow
def test_oracle_lists_every_object_of_the_ground_truth(work: Path) -> None:
    run("rvos-select", "oracle", "--cache", work / "valid.zarr", "--json", work / "objects.json")
    objects = json.loads((work / "objects.json").read_text())["objects"]
    videos = json.loads((work / "data/valid_u/meta_expressions.json").read_text())["videos"]
    expected = {f"{v}/{i}" for v, video in videos.items() for e in video["expressions"].values() for i in e["anno_id"]}
    assert objects.keys() >= expected and expected
    assert {key.split("/")[1] for key in objects} <= set(json.loads((work / "data/valid_u/mask_dict.json").read_text()))
    assert all(0 < iou <= 1 for iou in objects.values())


def test_info_counts_the_videos_of_the_split(work: Path) -> None:
    videos = json.loads((work / "data/train/meta_expressions.json").read_text())["videos"]
    facts = json.loads(run("rvos-cache", "info", work / "train.zarr", "--json"))
    assert facts["done"] == len(videos) == 4
    assert facts["failed"] == {} and facts["missing"] == []
    assert facts["bytes"] == sum(path.stat().st_size for path in (work / "train.zarr").rglob("*") if path.is_file())
    assert facts["content"] == content_digest(work / "train.zarr")
    assert facts["card"]["split"] == "train" and facts["card"]["producer"] == "flow"


def test_info_prints_what_its_json_holds(work: Path) -> None:
    videos = json.loads((work / "data/valid_u/meta_expressions.json").read_text())["videos"]
    printed = run("rvos-cache", "info", work / "valid.zarr").splitlines()
    assert printed[0] == "tracks of mevis valid_u by flow"
    assert printed[1].startswith(f"done {len(videos)}, failed 0, missing 0, ")
    assert printed[-1] == f"content {content_digest(work / 'valid.zarr')}"


def test_check_and_verify_find_no_fault(work: Path) -> None:
    videos = json.loads((work / "data/valid_u/meta_expressions.json").read_text())["videos"]
    assert run("rvos-cache", "verify", work / "valid.zarr") == "no fault\n"
    printed = run("rvos-cache", "check", "--dataset", "mevis", "--root", work / "data", "--split", "valid_u")
    frames, expressions = (sum(len(video[part]) for video in videos.values()) for part in ("frames", "expressions"))
    assert printed.startswith(f"{counted(len(videos), 'video')}, {frames} frames, {expressions} expressions, ")
    assert printed.endswith(" objects: no fault\n")


def test_submission_has_a_folder_of_each_video_at_its_root(work: Path) -> None:
    location = ["--dataset", "mevis", "--root", work / "data", "--split", "valid_u"]
    run("rvos-select", "submit", "--predictions", work / "masks", *location, "--out", work / "x.zip")
    archive = zipfile.ZipFile(work / "x.zip")
    masks = {str(path.relative_to(work / "masks")): path.read_bytes() for path in (work / "masks").rglob("*.png")}
    videos = json.loads((work / "data/valid_u/meta_expressions.json").read_text())["videos"]
    assert {name.split("/")[0] for name in archive.namelist()} == set(videos)
    assert set(archive.namelist()) == set(masks)
    for name, png in masks.items():
        stored, expected = (np.asarray(Image.open(io.BytesIO(raw))) for raw in (archive.read(name), png))
        np.testing.assert_array_equal(stored > 0, expected > 0)


@pytest.mark.slow
def test_report_opens_from_disk(work: Path) -> None:
    selections = ["--selections", work / "s.zarr", "--cache", work / "valid.zarr"]
    run("rvos-select", "report", "--run", work / "run", *selections, "--out", work / "page")
    page = (work / "page/index.html").read_text("utf-8")
    assert "J&amp;F" in page
    files = re.findall(r"""(?:src|href)=["']([^"'#]+)""", page)
    assert files and all(file.startswith("data:") or (work / "page" / file).is_file() for file in files)
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


@pytest.mark.slow
def test_ask_predicts_the_masks_of_the_cached_route(work: Path) -> None:
    """Live extraction of a video gives the masks that its cache gave."""
    videos = json.loads((work / "data/valid_u/meta_expressions.json").read_text())["videos"]
    video = sorted(videos)[0]
    sentence = videos[video]["expressions"]["0"]["exp"]
    frames = work / "data/valid_u/JPEGImages" / video
    run("rvos-select", "merge", "--selections", work / "s.zarr", "--cache", work / "valid.zarr", "--top1", "--out", work / "top1")
    run("rvos-select", "ask", frames, sentence, "--run", work / "run", "--top1", "--out", work / "ask")
    assert (work / "ask/overlay.mp4").stat().st_size > 0
    pixels = 0
    for name in videos[video]["frames"]:
        cached = read_mask_png(work / "top1" / video / "0" / f"{name}.png", (96, 160))
        live = read_mask_png(work / "ask/masks" / video / "0" / f"{name}.png", (96, 160))
        np.testing.assert_array_equal(cached, live)
        pixels += int(live.sum())
    assert pixels


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("tracks", {"producer": "sola"}, "trained on imported tracks"),
        ("tracks", {"settings": {"masks": "imported"}}, "trained on imported tracks"),
        ("tracks", {"weights": {"flow": "1"}}, "run, tracker flow: flow is none that is named, the run was trained with 1"),
        ("text", {"weights": {"hanta": "1.2.1, rules 1"}}, "the run was trained with 1.2.1, rules 1; bring that one back"),
        ("text", {"weights": {}}, "the run was trained with none that is named; bring that one back, or extract and train again"),
    ],
)
def test_ask_refuses_models_that_the_run_was_not_trained_with(
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    changes: dict[str, object],
    message: str,
) -> None:
    shutil.copytree(work / "run", tmp_path / "run")
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    settings["cards"][kind][0].update(changes)
    (tmp_path / "run/settings.json").write_text(json.dumps(settings))
    frames = sorted((work / "data/valid_u/JPEGImages").iterdir())[0]
    arguments = ("ask", frames, "the star", "--run", tmp_path / "run", "--out", tmp_path / "ask")
    code, stderr = call(monkeypatch, capsys, *arguments)
    assert code == 1 and message in stderr and len(stderr.splitlines()) == 1
    # The text encoder is compared before the tracker runs.
    assert (tmp_path / "ask").exists() == ("weights" in changes and kind == "tracks")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["extract", "--dataset", "nope", "--root", "{data}", "--split", "train", "--out", "{new}"], 1, "mevis"),
        (["extract", "--dataset", "mevis", "--root", "{data}", "--split", "valid_x", "--out", "{new}"], 1, "valid_u"),
        (["extract", "--dataset", "mevis", "--root", "{none}", "--split", "train", "--out", "{new}"], 1, "{none}"),
        (["extract", "--dataset", "mevis"], 2, "Missing option"),
        (["info", "{none}"], 1, "{none}"),
        (["verify", "{data}"], 1, "card.json"),
    ],
)
def test_wrong_arguments_are_one_line(work: Path, arguments: list[str], code: int, message: str) -> None:
    paths = {"data": work / "data", "none": work / "absent", "new": work / "new.zarr"}
    output = run("rvos-cache", *[argument.format(**paths) for argument in arguments], code=code)
    assert message.format(**paths) in output
    assert code == 2 or len(output.strip().splitlines()) == 1
    assert not paths["new"].exists()


@pytest.mark.slow
def test_predict_refuses_words_of_another_width(work: Path) -> None:
    location = ["--dataset", "mevis", "--root", work / "data", "--split", "valid_u"]
    text, out = work / "text-narrow.zarr", work / "narrow.zarr"
    run("rvos-cache", "extract-text", *location, "--encoder", "hashed", "--set", "channels=64", "--out", text)
    caches = ["--cache", work / "valid.zarr", "--text", text]
    output = run("rvos-select", "predict", "--run", work / "run", *caches, "--out", out, code=1)
    assert len(output.strip().splitlines()) == 1 and "64" in output.replace(str(work), "")
    assert not out.exists()
