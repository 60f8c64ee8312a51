"""SOLA's pages of several datasets, and the layouts of two datasets in one run: from frames to scores and zips."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_caches import settings

from pipelines.sola_joint import sola_joint
from pipelines.sola_zero_shot import sola_zero_shot
from rvos_cache.datasets.ref_youtube_vos import is_held_out
from rvos_cache.extraction import extract, extract_text
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation import benchmark_selections
from rvos_select.inference.predict import predict
from rvos_select.training.train import train

sys.path.insert(0, str(Path(__file__).parents[1]))
from odd_videos import EXPRESSIONS, write_split

SMALL = [
    "epochs=1", "optim.lr=1e-3", "config.width=16", "config.heads=2", "config.layers=1", "config.negatives=2",
]  # fmt: skip


def called(monkeypatch: pytest.MonkeyPatch, page: click.Command, *words: object, encoder: str = "hashed") -> None:
    """Run a page as its command line does."""
    sets = [word for value in SMALL for word in ("--set", value)]
    monkeypatch.setattr(sys, "argv", [str(page.name), *map(str, words), "--encoder", encoder, "--tracker", "flow", *sets])
    page(standalone_mode=False)


# Two datasets of their own layouts, from frames to scores.


def write_plain(root: Path, videos: list[str]) -> Path:
    """A yellow and a cyan square, in the layout of `plain`."""
    expressions = {}
    for video in videos:
        for folder in ("videos", "masks"):
            (root / folder / video).mkdir(parents=True)
        for t in range(5):
            frame, mask = np.full((40, 56, 3), 70, np.uint8), np.zeros((40, 56), np.uint8)
            for number, (top, left, colour) in enumerate(((4, 2 + 4 * t, (0, 220, 220)), (24, 40 - 4 * t, (220, 220, 0))), 1):
                frame[top : top + 12, left : left + 12], mask[top : top + 12, left : left + 12] = colour, number
            cv2.imwrite(str(root / "videos" / video / f"{t:05d}.jpg"), frame)
            cv2.imwrite(str(root / "masks" / video / f"{t:05d}.png"), mask)
        expressions[video] = [{"text": "yellow moving right", "objects": [1]}, {"text": "cyan moving left", "objects": [2]}]
    (root / "expressions.json").write_text(json.dumps(expressions))
    return root


def test_mevis_and_plain_train_together_from_their_own_layouts(tmp_path: Path) -> None:
    for split, videos in (("train", ("t0", "t1")), ("valid_u", ("u0",))):
        write_split(tmp_path / "mevis" / split, dict.fromkeys(videos, (5, True, EXPRESSIONS)))
    roots = {"mevis": tmp_path / "mevis", "plain": write_plain(tmp_path / "plain", ["p0", "p1"])}
    caches: dict[str, tuple[Path, Path]] = {}
    for dataset, split in (("mevis", "train"), ("mevis", "valid_u"), ("plain", "all"), ("mevis", "train-mirror")):
        tracks, words = tmp_path / f"{dataset}-{split}.zarr", tmp_path / f"{dataset}-{split}-text.zarr"
        assert not extract(dataset, roots[dataset], split, "flow", tracks).failed
        assert not extract_text(dataset, roots[dataset], split, "hashed", words).failed
        caches[f"{dataset}/{split}"] = tracks, words
    names = ("mevis/train", "mevis/train-mirror", "plain/all")
    given = settings(selector="mean-cosine", config={}, optim={"lr": 5e-3}, epochs=2, weights={"plain": 2})
    valid = caches["mevis/valid_u"]
    out = train(
        [caches[n][0] for n in names],
        [caches[n][1] for n in names],
        settings=given,
        valid_tracks=[valid[0]],
        valid_texts=[valid[1]],
        out=tmp_path / "run",
    )
    sets = json.loads((out / "settings.json").read_text())["sets"]
    assert {name: row["drawn"] for name, row in sets.items()} == {"mevis/train": 2, "mevis/train-mirror": 2, "plain/all": 4}
    for name in ("mevis/valid_u", "plain/all"):
        selections = predict(out, [caches[name][0]], [caches[name][1]], tmp_path / f"{name.replace('/', '-')}-s.zarr")
        scores = benchmark_selections(selections, [caches[name][0]], {})
        assert (scores["dataset"], scores["split"]) == tuple(name.split("/"))
        assert 0 <= scores["jf"] <= 1 and len(scores["expressions"]) == {"mevis/valid_u": 3, "plain/all": 4}[name]


# The page of SOLA's joint table.


def write_youtube(root: Path) -> Path:
    """Two videos to train on and two held out, with the squares of `write_plain`, and one of valid, in ReferFormer's layout."""
    names = [f"y{i}" for i in range(200)]
    fit, held_out = [n for n in names if not is_held_out(n)][:2], [n for n in names if is_held_out(n)][:2]
    write_plain(root / "plain", [*fit, *held_out, "hidden"])
    for split, videos in (("train", [*fit, *held_out]), ("valid", ["hidden"])):
        shown, listed, meta = split == "train", {}, {}
        for video in videos:
            shutil.copytree(root / "plain/videos" / video, root / split / "JPEGImages" / video)
            frames = [f"{t:05d}" for t in range(5)]
            expressions = {
                str(i): {"exp": text, **({"obj_id": str(i + 1)} if shown else {})} for i, text in enumerate(("yellow", "cyan"))
            }
            listed[video] = {"frames": frames, "expressions": expressions}
            if shown:
                (root / "train/Annotations" / video).mkdir(parents=True)
                for name in frames:
                    image = Image.fromarray(cv2.imread(str(root / f"plain/masks/{video}/{name}.png"), cv2.IMREAD_UNCHANGED), "P")
                    image.putpalette([*range(256)] * 3)
                    image.save(root / "train/Annotations" / video / f"{name}.png")
                meta[video] = {"objects": {n: {"category": "square", "frames": frames} for n in ("1", "2")}}
        path = root / "meta_expressions" / split / "meta_expressions.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"videos": listed}))
        if shown:
            (root / "train/meta.json").write_text(json.dumps({"videos": meta}))
    return root


@pytest.mark.slow
def test_the_page_of_the_joint_table_goes_from_both_layouts_to_scores_and_zips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, videos in (("train", ("t0", "t1")), ("valid_u", ("u0",)), ("valid", ("h0",))):
        write_split(tmp_path / "mevis" / split, dict.fromkeys(videos, (5, True, EXPRESSIONS)))
    (tmp_path / "mevis/valid/mask_dict.json").unlink()
    listed = json.loads((tmp_path / "mevis/valid/meta_expressions.json").read_text())
    for expression in listed["videos"]["h0"]["expressions"].values():
        del expression["anno_id"]
    (tmp_path / "mevis/valid/meta_expressions.json").write_text(json.dumps(listed))
    given = ("--mevis", tmp_path / "mevis", "--youtube", write_youtube(tmp_path / "youtube"), "--out", tmp_path / "out")
    called(monkeypatch, sola_joint, *given, "--set", "weights.mevis=2")
    told = capsys.readouterr().out
    assert "the paper: mevis/valid J&F 48.9" in told and "the paper: ref-youtube-vos/valid J&F 55.4" in told
    sets = json.loads((tmp_path / "out/run/settings.json").read_text())["sets"]
    assert sets["mevis/train"] == {"weight": 2, "items": 6, "drawn": 12}
    assert sets["ref-youtube-vos/fit"] == {"weight": 1, "items": 4, "drawn": 4}
    video_ids = TrackSource([tmp_path / "out/cache/ref-youtube-vos/held_out/flow.zarr"]).video_ids()
    for name, videos in (("mevis", {"u0"}), ("ref-youtube-vos", set(video_ids))):
        scores = json.loads((tmp_path / f"out/metrics/{name}.json").read_text())
        assert {key.split("/")[0] for key in scores["expressions"]} == videos and scores["dataset"] == name
        assert (tmp_path / f"out/report/{name}/index.html").exists()
    for name, first in (("mevis", "h0/0/00000.png"), ("ref-youtube-vos", "Annotations/hidden/0/00000.png")):
        with zipfile.ZipFile(tmp_path / f"out/{name}_valid.zip") as archive:
            assert archive.namelist()[0] == first
    before = (tmp_path / "out/run/metrics.jsonl").read_bytes()
    assert {"valid/mevis/valid_u/jf", "valid/ref-youtube-vos/held_out/jf"} <= set(json.loads(before))
    called(monkeypatch, sola_joint, *given, "--set", "weights.mevis=2")
    assert (tmp_path / "out/run/metrics.jsonl").read_bytes() == before


# The page of SOLA's zero-shot table.


def write_davis(root: Path) -> Path:
    """Two videos with the squares of `write_plain`, two sentences of one annotator, in ReferFormer's layout."""
    videos = ["d0", "d1"]
    write_plain(root / "plain", videos)
    listed = {}
    for video in videos:
        shutil.copytree(root / "plain/videos" / video, root / "valid/JPEGImages" / video)
        shutil.copytree(root / "plain/masks" / video, root / "valid/Annotations" / video)
        expressions = {str(i): {"exp": text, "obj_id": str(i + 1)} for i, text in enumerate(("yellow", "cyan"))}
        listed[video] = {"frames": [f"{t:05d}" for t in range(5)], "expressions": expressions}
    path = root / "meta_expressions/valid/meta_expressions.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"videos": listed}))
    return root


@pytest.mark.slow
def test_the_page_of_the_zero_shot_table_scores_what_it_has_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, videos in (("train", ("t0", "t1")), ("valid_u", ("u0",))):
        write_split(tmp_path / "mevis" / split, dict.fromkeys(videos, (5, True, EXPRESSIONS)))
    roots = ("--youtube", write_youtube(tmp_path / "youtube"), "--davis", write_davis(tmp_path / "davis"))
    called(monkeypatch, sola_zero_shot, "--mevis", tmp_path / "mevis", *roots, "--out", tmp_path / "out")
    told = capsys.readouterr().out
    assert "the paper: ref-youtube-vos/valid J&F 47.9, J 44.3" in told and "the paper: ref-davis17/valid J&F 45.4" in told
    record = json.loads((tmp_path / "out/run/settings.json").read_text())
    assert list(record["sets"]) == ["mevis/train"]
    files = {name: tmp_path / f"out/metrics/{name}.json" for name in ("ref-youtube-vos", "ref-davis17")}
    scores = {name: json.loads(path.read_text()) for name, path in files.items()}
    assert scores["ref-davis17"]["protocol"] == "davis-unsupervised" and len(scores["ref-davis17"]["objects"]) == 4
    assert scores["ref-youtube-vos"]["split"] == "held_out" and len(scores["ref-youtube-vos"]["expressions"]) == 4
    for name, first in (("ref-youtube-vos", "Annotations/hidden/0/00000.png"), ("ref-davis17", "anno_0/d0/00000.png")):
        with zipfile.ZipFile(tmp_path / f"out/{name}_valid.zip") as archive:
            assert archive.namelist()[0] == first

    # The run of another page serves; nothing of MeViS is asked for then.
    given = ("--mevis", tmp_path / "nowhere", "--run", tmp_path / "out/run", *roots, "--out", tmp_path / "again")
    called(monkeypatch, sola_zero_shot, *given)
    assert not (tmp_path / "again/run").exists() and not (tmp_path / "again/cache/mevis").exists()
    for name, expected in scores.items():
        assert json.loads((tmp_path / f"again/metrics/{name}.json").read_text()) == expected
