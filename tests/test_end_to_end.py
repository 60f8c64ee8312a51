"""The commands of the README on a handful of moving-shapes videos, as a person types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rvos_cache.mask_png import read_mask_png
from rvos_cache.shapes import write_shapes

SMALL = [
    "--set", "epochs=2", "--set", "batch=video", "--set", "optim.lr=1e-3",
    "--set", "config.width=32", "--set", "config.heads=4",
]  # fmt: skip


def run(program: str, *words: object, code: int = 0) -> str:
    """What the command printed; it must end with `code` and never with a traceback."""
    module = {"rvos-cache": "rvos_cache.cli", "rvos-select": "rvos_select.cli.commands"}[program]
    command = [sys.executable, "-c", f"from {module} import main; main()", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert done.returncode == code, said
    return said


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, caches and a trained run; each test reads, none changes it."""
    out = tmp_path_factory.mktemp("work")
    write_shapes(out / "data", 5, 3)
    for split, name in (("train", "train"), ("valid_u", "valid")):
        where = ["--dataset", "mevis", "--root", out / "data", "--split", split]
        run("rvos-cache", "extract", *where, "--tracker", "flow", "--out", out / f"{name}.zarr")
        run("rvos-cache", "extract-text", *where, "--encoder", "hashed", "--out", out / f"text-{name}.zarr")
    valid = ["--valid-cache", out / "valid.zarr", "--valid-text", out / "text-valid.zarr"]
    train = ["--cache", out / "train.zarr", "--text", out / "text-train.zarr", *valid]
    run("rvos-select", "train", *train, "--selector", "sola", *SMALL, "--out", out / "run")
    cache = ["--cache", out / "valid.zarr"]
    run("rvos-select", "predict", "--run", out / "run", *cache, "--text", out / "text-valid.zarr", "--out", out / "s.zarr")
    run("rvos-select", "merge", "--selections", out / "s.zarr", *cache, "--out", out / "masks")
    return out


def test_pngs_and_selections_score_the_same(work: Path) -> None:
    where = ["--dataset", "mevis", "--root", work / "data", "--split", "valid_u"]
    run("rvos-select", "evaluate", *where, "--predictions", work / "masks", "--json", work / "png.json")
    given = ["--selections", work / "s.zarr", "--cache", work / "valid.zarr"]
    run("rvos-select", "evaluate", *where, *given, "--json", work / "sel.json")
    pngs, direct = (json.loads((work / name).read_text()) for name in ("png.json", "sel.json"))
    assert pngs["expressions"].keys() == direct["expressions"].keys()
    assert pngs["jf"] == pytest.approx(direct["jf"], abs=1e-9)
    assert pngs["jf"] == pytest.approx((pngs["j"] + pngs["f"]) / 2, abs=1e-12)


def test_oracle_is_above_the_prediction_and_names_objects(work: Path) -> None:
    run("rvos-select", "oracle", "--cache", work / "valid.zarr", "--json", work / "o.json")
    oracle = json.loads((work / "o.json").read_text())
    truth = json.loads((work / "data/valid_u/mask_dict.json").read_text())
    assert {key.split("/")[1] for key in oracle["objects"]} <= set(truth)
    assert oracle["jf"] > 0.5


def test_info_and_verify(work: Path) -> None:
    info = json.loads(run("rvos-cache", "info", work / "valid.zarr", "--json"))
    videos = json.loads((work / "data/valid_u/meta_expressions.json").read_text())["videos"]
    assert sorted(info["done"] if isinstance(info["done"], list) else videos) == sorted(videos)
    assert info["content"]
    run("rvos-cache", "verify", work / "valid.zarr")
    run("rvos-cache", "check", "--dataset", "mevis", "--root", work / "data", "--split", "valid_u")


def test_submission_has_video_folders_at_its_root(work: Path) -> None:
    where = ["--dataset", "mevis", "--root", work / "data", "--split", "valid_u"]
    run("rvos-select", "submit", "--predictions", work / "masks", *where, "--out", work / "x.zip")
    names = zipfile.ZipFile(work / "x.zip").namelist()
    videos = json.loads((work / "data/valid_u/meta_expressions.json").read_text())["videos"]
    assert {name.split("/")[0] for name in names} == set(videos)


def test_report_opens_from_disk(work: Path) -> None:
    given = ["--selections", work / "s.zarr", "--cache", work / "valid.zarr"]
    run("rvos-select", "report", "--run", work / "run", *given, "--out", work / "page")
    page = (work / "page/index.html").read_text("utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "J&amp;F" in page


def test_ask_answers_like_the_cached_route(work: Path) -> None:
    """Live extraction of a video gives the masks that its cache gave."""
    meta = json.loads((work / "data/valid_u/meta_expressions.json").read_text())["videos"]
    video = sorted(meta)[0]
    sentence = meta[video]["expressions"]["0"]["exp"]
    frames = work / "data/valid_u/JPEGImages" / video
    run("rvos-select", "ask", frames, sentence, "--run", work / "run", "--out", work / "ask")
    assert (work / "ask/overlay.mp4").stat().st_size > 0
    for name in meta[video]["frames"]:
        cached = read_mask_png(work / "masks" / video / "0" / f"{name}.png", (96, 160))
        live = read_mask_png(work / "ask/masks" / video / "0" / f"{name}.png", (96, 160))
        assert np.array_equal(cached, live)


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("tracks", {"producer": "sola"}, "trained on imported tracks"),
        ("tracks", {"settings": {"masks": "imported"}}, "trained on imported tracks"),
        ("tracks", {"weights": {"flow": "1"}}, "run, tracker flow: flow is none that is named, the run was trained with 1"),
        ("text", {"weights": {"hanta": "1.2.1, rules 1"}}, "the run was trained with 1.2.1, rules 1; bring that one back"),
        ("text", {"weights": {}}, "the run was trained with none that is named; bring that one back, or extract and train again"),
    ],
)
def test_ask_runs_nothing_but_what_the_run_was_trained_on(
    work: Path, tmp_path: Path, kind: str, changes: dict[str, object], says: str
) -> None:
    shutil.copytree(work / "run", tmp_path / "run")
    held = json.loads((tmp_path / "run/settings.json").read_text())
    held["cards"][kind][0].update(changes)
    (tmp_path / "run/settings.json").write_text(json.dumps(held))
    frames = sorted((work / "data/valid_u/JPEGImages").iterdir())[0]
    said = run("rvos-select", "ask", frames, "the star", "--run", tmp_path / "run", "--out", tmp_path / "ask", code=1)
    assert says in said and len(said.strip().splitlines()) == 1
    # Words are compared before the tracker runs.
    assert (tmp_path / "ask").exists() == ("weights" in changes and kind == "tracks")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["extract", "--dataset", "nope", "--root", "{data}", "--split", "train", "--out", "x.zarr"], 1, "mevis"),
        (["extract", "--dataset", "mevis", "--root", "{data}", "--split", "valid_x", "--out", "x.zarr"], 1, "valid_u"),
        (["extract", "--dataset", "mevis", "--root", "{none}", "--split", "train", "--out", "x.zarr"], 1, "none"),
        (["extract", "--dataset", "mevis"], 2, "Missing option"),
        (["info", "{none}"], 1, "none"),
        (["verify", "{data}"], 1, "card.json"),
    ],
)
def test_wrong_words_get_one_line(work: Path, words: list[str], code: int, says: str) -> None:
    places = {"data": work / "data", "none": work / "none"}
    said = run("rvos-cache", *[word.format(**places) for word in words], code=code)
    assert says in said
    assert code == 2 or len(said.strip().splitlines()) == 1


def test_a_run_refuses_other_words(work: Path) -> None:
    """A text cache of another width than the run was trained with."""
    where = ["--dataset", "mevis", "--root", work / "data", "--split", "valid_u"]
    run("rvos-cache", "extract-text", *where, "--encoder", "hashed", "--set", "channels=64", "--out", work / "t64.zarr")
    given = ["--cache", work / "valid.zarr", "--text", work / "t64.zarr", "--out", work / "s64.zarr"]
    said = run("rvos-select", "predict", "--run", work / "run", *given, code=1)
    assert "64" in said
