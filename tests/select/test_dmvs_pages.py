"""DMVS's page: from frames to scores and the zip, and every row of the paper's tables."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from test_refcoco import write_refcoco
from test_sola_pages import write_davis, write_youtube
from tiny_vita import CHANNELS, SMALL, write_checkpoint

from pipelines import dmvs_mevis as page
from pipelines import dmvs_models
from pipelines.dmvs_shapes import dmvs_shapes
from pipelines.dmvs_single_object import IMAGES, dmvs_single_object
from pipelines.rows.papers import read_paper, row_of
from rvos_cache.errors import InputError
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.store import SelectionCache, read_card
from rvos_cache.text.roberta import RobertaSettings
from rvos_cache.trackers.vita import VitaSettings, load_head
from rvos_cache.trackers.vita.checkpoint import head_hash
from rvos_select.merging.policy import resolve_policy
from rvos_select.selectors.dmvs.config import DmvsConfig
from rvos_select.training.settings import TrainSettings

sys.path.insert(0, str(Path(__file__).parents[1]))
from odd_videos import EXPRESSIONS, write_split

PAPER = Path(page.__file__).parent / "papers/dmvs.toml"
ROWS = {name: row for name, row in read_paper(PAPER).rows() if not row.reason and "table_2" not in name}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_settings_away_and_its_numbers_fit(row: str) -> None:
    published = row_of("dmvs", row.partition(".")[2])
    values = merge(read_toml(PAPER.parent.parent / published.settings), parse_overrides(published.set))
    settings = build(TrainSettings, values, "page")
    config = build(DmvsConfig, settings.config, "row")
    assert (config == DmvsConfig()) == (published.set == ())
    for j_and_f, j, f in published.paper.values():
        assert abs(j_and_f - (j + f) / 2) < 0.11


def test_the_caches_settings_exist() -> None:
    assert build(RobertaSettings, dmvs_models.TEXT, "text").normalise == "lower"
    assert build(VitaSettings, {**dmvs_models.TRACKER, "checkpoint": "x"}, "tracker").short_side == 360


def test_the_schedule_is_the_paper_s() -> None:
    """40,000 steps at 5e-5 over MeViS's 23,051 sentences, the rate a tenth from 28,000 on."""
    values = read_toml(PAPER.parent.parent / "dmvs_mevis.toml")
    steps = values["epochs"] * -(-23_051 // values["batch_size"])
    assert abs(steps - 40_000) < 500
    assert abs(values["optim"]["milestones"][0] * steps - 28_000) < 500


def hide(split: Path) -> None:
    """Take the answers away, as MeViS does of the split that its server scores."""
    (split / "mask_dict.json").unlink()
    meta = json.loads((split / "meta_expressions.json").read_text())
    for video in meta["videos"].values():
        for expression in video["expressions"].values():
            del expression["anno_id"]
    (split / "meta_expressions.json").write_text(json.dumps(meta))


def test_from_frames_to_scores_and_zip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    for split, videos in (("train", ("t0",)), ("valid_u", ("u0",)), ("valid", ("v0",))):
        write_split(root / split, dict.fromkeys(videos, (5, True, EXPRESSIONS)))
    hide(root / "valid")
    vita = write_checkpoint(tmp_path / "vita")
    tracker = [word for k, v in {**SMALL, "max_tracks": 4}.items() for word in ("--tracker-set", f"{k}={v}")]
    small = {
        "epochs": 1, "batch_size": 2, "clip.frames": 3, "config.width": CHANNELS, "config.hidden": 16, "config.layers": 1,
        "config.points": 40, "config.motion_queries": 4,
    }  # fmt: skip
    sets = [word for k, v in small.items() for word in ("--set", f"{k}={v}")]
    given = ["--root", root, "--vita", vita, "--encoder", "hashed", "--row", "table_5.text", *tracker, *sets]
    words = ["page", *map(str, given), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    page.dmvs_mevis(standalone_mode=False)
    output = capsys.readouterr().out
    assert "the paper: mevis/valid J&F 46.8, J 42.6, F 51.0" in output and "threshold 0.8" in output
    row = tmp_path / "out/table_5.text"
    settings = json.loads((row / "run/settings.json").read_text())
    assert settings["resolved"]["config"]["init"] == "text" and settings["settings"]["optim"]["decay_all"] is False
    assert len(json.loads((row / "metrics.json").read_text())["expressions"]) == len(EXPRESSIONS)
    names = zipfile.ZipFile(row / "mevis_valid.zip").namelist()
    assert len([name for name in names if name.endswith(".png")]) == 5 * len(EXPRESSIONS)
    first = {path: path.stat().st_mtime_ns for path in (row / "run").rglob("*") if path.is_file()}
    page.dmvs_mevis(standalone_mode=False)
    assert (row / "run/last/model.safetensors").stat().st_mtime_ns == first[row / "run/last/model.safetensors"]


def test_an_unknown_row_is_one_line() -> None:
    with pytest.raises(InputError, match=r"no row 'table_9'; there are: table_1.val, ") as fault:
        row_of("dmvs", "table_9")
    assert "\n" not in str(fault.value) and "vita_rvos" not in str(fault.value)
    with pytest.raises(InputError, match="the row 'table_3.vita_rvos' cannot be run here: another system"):
        row_of("dmvs", "table_3.vita_rvos")


def test_the_steps_of_one_epoch_are_the_paper_s() -> None:
    """40,000 steps over one epoch of the four sets' training sentences; all else as on MeViS."""
    ours, theirs = (read_toml(PAPER.parent.parent / f"{name}.toml") for name in ("dmvs_single_object", "dmvs_mevis"))
    sentences = 12_913 + 120_624 + 120_191 + 80_512
    assert abs(ours["epochs"] * sentences / ours["batch_size"] - 40_000) < 2_000
    assert {**ours, "epochs": 0} == {**theirs, "epochs": 0}


@pytest.mark.slow
def test_the_page_of_one_object_each_trains_on_all_and_answers_with_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in IMAGES:
        write_refcoco(tmp_path / name, name, ("train",))
        shutil.copytree(tmp_path / name, tmp_path / "images", dirs_exist_ok=True)
    roots = {"youtube": write_youtube(tmp_path / "yt"), "davis": write_davis(tmp_path / "dv"), "images": tmp_path / "images"}
    given = [word for name, root in roots.items() for word in (f"--{name}", root)]
    tracker = [word for k, v in {**SMALL, "max_tracks": 4}.items() for word in ("--tracker-set", f"{k}={v}")]
    small = {
        "batch_size": 4, "clip.frames": 2, "config.width": CHANNELS, "config.hidden": 16, "config.layers": 1, "config.points": 30,
        "config.motion_queries": 4,
    }  # fmt: skip
    sets = [word for k, v in small.items() for word in ("--set", f"{k}={v}")]
    words = [*given, "--vita", write_checkpoint(tmp_path / "vita"), "--encoder", "hashed", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["page", *map(str, words), *tracker, *sets])
    dmvs_single_object(standalone_mode=False)
    output = capsys.readouterr().out
    assert "the paper: ref-youtube-vos/valid J&F 64.3" in output and "the paper: ref-davis17/valid J&F 65.2" in output
    record = json.loads((tmp_path / "out/run/settings.json").read_text())
    drawn = {name: row["drawn"] for name, row in record["sets"].items()}
    assert drawn == {"ref-youtube-vos/fit": 4, **{f"{name}/train-pseudo10": 5 for name in IMAGES}}
    for name, split in (("ref-youtube-vos", "held_out"), ("ref-davis17", "valid")):
        selections = SelectionCache(tmp_path / f"out/selections/{name}-{split}.zarr")
        assert resolve_policy(selections).top1
        assert json.loads((tmp_path / f"out/metrics/{name}.json").read_text())["dataset"] == name
    for name, first in (("ref-youtube-vos", "Annotations/hidden/0/00000.png"), ("ref-davis17", "anno_0/d0/00000.png")):
        with zipfile.ZipFile(tmp_path / f"out/{name}_valid.zip") as archive:
            assert archive.namelist()[0] == first


@pytest.mark.slow
def test_the_shapes_page_trains_a_vita_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"epochs": 1, "batch_size": 8, "clip.frames": 3, "config.hidden": 16, "config.layers": 1, "config.points": 40}
    small["config.motion_queries"] = 1
    sets = [word for k, v in small.items() for word in ("--set", f"{k}={v}")]
    sizes = ["--videos", "3", "--vita-videos", "2", "--vita-steps", "2"]
    monkeypatch.setattr(sys, "argv", ["page", "--out", str(tmp_path / "out"), *sizes, *sets])
    dmvs_shapes(standalone_mode=False)
    output = capsys.readouterr().out
    assert "frozen masks" in output and "oracle of VITA's tracks" in output
    card = read_card(tmp_path / "out/cache/valid_u/vita.zarr")
    head = load_head(str(tmp_path / "out/vita"))
    assert card.weights["vita_head.safetensors"] == head_hash(head)["vita_head.safetensors"]
    assert all(parameter.isfinite().all() for parameter in head.parameters())
    assert (tmp_path / "out/report/index.html").exists()
    # All tracks are all, also of a module that chooses among fewer.
    everything = SelectionCache(tmp_path / "out/selections/all_tracks.zarr")
    chosen = [
        resolve_policy(everything)(selection).tolist() for v in everything.video_ids() for selection in everything.selections(v)
    ]
    assert chosen and all(len(tracks) > 1 and tracks == list(range(len(tracks))) for tracks in chosen)
