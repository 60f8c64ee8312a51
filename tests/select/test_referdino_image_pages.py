"""ReferDINO's pages of frames alone, and the rows that tune or need no training: from frames to scores."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from released_referdino import shared_grounding, single_frame_file
from tiny_grounding_dino import tiny_grounding_dino
from tiny_referdino_pages import IMAGES, TRACKER, called, words_of, write_images
from tiny_sam2 import tiny_sam2

from pipelines import referdino_images, referdino_mevis
from pipelines.referdino_rows import all_rows
from rvos_cache.store import SelectionCache, TrackCache, read_card
from rvos_select.exchange.import_referdino import import_referdino
from rvos_select.runs.checkpoint import load_selector

sys.path.insert(0, str(Path(__file__).parents[1]))
from odd_videos import EXPRESSIONS, write_split

ROWS = all_rows()


@pytest.fixture
def images(tmp_path: Path) -> tuple[object, ...]:
    return write_images(tmp_path)


def check_images(row: Path) -> None:
    for name in IMAGES:
        metrics = json.loads((row / f"metrics/{name}.json").read_text())
        assert (metrics["dataset"], metrics["split"]) == (name, "test-frames") and 0 <= metrics["map"] <= 1
        page = (row / f"report/{name}/index.html").read_text("utf-8")
        assert "<th>mAP</th>" in page and f"{name} test-frames: " in page and "Worst cases" in page


@pytest.mark.slow
def test_scored_frames(
    tmp_path: Path, images: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"epochs": 1, "batch_size": 2, "hold_out": 0}
    words = (*images, "--upstream", tiny_grounding_dino(tmp_path / "tiny"), "--way", "cached", *TRACKER, *words_of(small))
    called(monkeypatch, referdino_images.referdino_images, *words)
    printed = capsys.readouterr().out
    for name in IMAGES:
        assert f"the paper: {name}/test-frames has no published number of this way" in printed
    row = tmp_path / "out/table_1.referdino_t_images_cached"
    check_images(row)
    card = read_card(tmp_path / "out/cache/tiny/a2d-sentences/train-frames/gdino-queries.zarr")
    assert card.settings["resizing"] == "image"
    # The box head alone.
    assert {name.partition(".")[0] for name in load_selector(row / "run").state_dict()} == {"box"}


@pytest.mark.slow
def test_released_weights_of_images_predict_without_training(
    tmp_path: Path, images: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "released"
    import_referdino(single_frame_file(), str(shared_grounding()), run)
    words = (*images, "--imported", run, "--tracker-set", "short_side=32", "--tracker-set", "keep_ratio=0.4")
    with pytest.warns(UserWarning, match=r"tracks with settings.keep_ratio = 0.4") as caught:
        called(monkeypatch, referdino_images.referdino_images, *words)
    assert not [w for w in caught if "resizing" in str(w.message)]
    assert "the paper: a2d-sentences/test-frames mAP 61.1, overall IoU 82.1, mean IoU 73.6" in capsys.readouterr().out
    check_images(tmp_path / "out/table_1.referdino_b_images")
    # Nothing is extracted to train on; every query of a sentence is a detection, with its probability as score.
    assert [folder.name for folder in (tmp_path / "out/cache/released/a2d-sentences").iterdir()] == ["test-frames"]
    tracks = TrackCache(tmp_path / "out/cache/released/jhmdb-sentences/test-frames/gdino-queries.zarr")
    selections = SelectionCache(tmp_path / "out/table_1.referdino_b_images/selections/jhmdb-sentences.zarr")
    for video_id in tracks.video_ids():
        (selection,) = selections.selections(video_id)
        assert selection.candidates.all() and len(selection.scores) == 4
        visible = tracks.presence(video_id)[:, 0] > 0
        assert np.allclose(selection.scores[visible], tracks.presence(video_id)[visible, 0], atol=2e-3)


TUNING = {"frames": 3, "augment": "none", "short_side": 64, "steps": 1, "accumulate": 1, "keep_ratio": 0.4, "anchor_every": 16}


@pytest.mark.slow
@pytest.mark.parametrize("row", ["table_2.referdino_t", "table_4.dot_product"])
def test_a_row_tunes_its_upstream_first(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    for split in ("train", "valid_u"):
        write_split(root / split, {split: (3, True, EXPRESSIONS)})
    tuning = [word for name, value in TUNING.items() for word in ("--tune-set", f"{name}={value}")]
    words = ("--root", root, "--out", out, "--row", row, *tuning, "--tracker-set", "short_side=32")
    words = (*words, "--upstream", tiny_grounding_dino(tmp_path / "tiny"))
    called(monkeypatch, referdino_mevis.referdino_mevis, *words)
    assert f"the paper: mevis/valid J&F {ROWS[row]['paper']['mevis/valid'][0]}" in capsys.readouterr().out
    page = (out / row / "report/index.html").read_text("utf-8")
    assert "Tuning of the upstream" in page and "the paper, mevis/valid" in page and "words of hashed" not in page
    record = json.loads((out / row / "tuned/tune.json").read_text())
    assert record["settings"]["preset"] == "mevis_swint" and record["split"] == "train"
    assert record["settings"]["mask_head"] == ("dot" if "dot" in row else "deformable")
    (cache,) = (out / "cache").glob(f"tuned-{row}-*")
    card = read_card(cache / "valid_u/gdino-queries.zarr")
    assert (card.settings["masks"], card.settings["keep_ratio"]) == ("head", 0.4)
    assert card.settings["checkpoint"] == str((out / row / "tuned-run/upstream").absolute())
    assert not (out / row / "run").exists() and not (cache / "train").exists()
    # Again: nothing is left to do.
    written = (out / row / "tuned-run/best/model.safetensors").stat().st_mtime_ns
    called(monkeypatch, referdino_mevis.referdino_mevis, *words)
    assert (out / row / "tuned-run/best/model.safetensors").stat().st_mtime_ns == written


@pytest.mark.slow
def test_grounded_sam2_selects_every_track(
    tmp_path: Path, images: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_sam2(tmp_path / "sam2")
    words = ("--upstream", tiny_grounding_dino(tmp_path / "tiny"), "--tracker-set", f"checkpoint={tmp_path / 'sam2'}")
    words = (*words, *[word for pair in ("box_threshold=0", "stability=0", "same_iou=1") for word in ("--tracker-set", pair)])
    root, out = tmp_path / "data", tmp_path / "out"
    for split in ("train", "valid_u"):
        write_split(root / split, {split: (3, True, EXPRESSIONS)})
    row = ("--row", "table_2.grounded_sam2_t")
    called(monkeypatch, referdino_mevis.referdino_mevis, "--root", root, "--out", out, *row, *words)
    assert "the paper: mevis/valid J&F 37.4, J 31.0, F 43.7" in capsys.readouterr().out
    page = (out / "table_2.grounded_sam2_t/report/index.html").read_text("utf-8")
    assert "nothing was trained" in page and "the paper, mevis/valid" in page
    folder = out / "cache/sam2-box-tiny-prompt_every_100000"
    cache = TrackCache(folder / "valid_u/sam2-box.zarr")
    assert [split.name for split in folder.iterdir()] == ["valid_u"]
    selections = SelectionCache(out / "table_2.grounded_sam2_t/selections/valid_u.zarr")
    for video_id in cache.video_ids():
        assert set(cache.info(video_id).prompt_frame.tolist()) == {0}
        assert all((s.scores == s.candidates).all() for s in selections.selections(video_id))
    row = ("--row", "table_1.grounded_sam2_b_images")
    called(monkeypatch, referdino_images.referdino_images, *images, *row, *words)
    assert "the paper: jhmdb-sentences/test-frames mAP 42.5, overall IoU 72.1, mean IoU 72.1" in capsys.readouterr().out
    check_images(out / "table_1.grounded_sam2_b_images")
