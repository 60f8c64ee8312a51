"""DeRVOS's pages: every row of the summary is settings away or says why not; from frames to scores and the zips."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tiny_dvis
import tiny_vita
from test_dmvs_pages import hide
from test_sola_pages import write_davis, write_youtube
from tiny_beit3 import write_tiny_beit3

from pipelines.dervos_mevis import MAIN, dervos_mevis
from pipelines.dervos_models import FRAMES, PAPER, Caches, Models, published_row
from pipelines.dervos_single_object import ROW, dervos_single_object
from rvos_cache.errors import InputError
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.store import SelectionCache, read_card
from rvos_cache.text.beit3.encoder import Beit3Settings
from rvos_cache.text.roberta import RobertaSettings
from rvos_cache.trackers.dvis.settings import DvisSettings
from rvos_cache.trackers.frames import FramesSettings
from rvos_cache.trackers.vita import VitaSettings
from rvos_select.merging.policy import resolve_policy
from rvos_select.selectors.dervos_config import DervosConfig
from rvos_select.training.settings import TrainSettings

sys.path.insert(0, str(Path(__file__).parents[1]))
from odd_videos import SAID, write_split

PAGES = PAPER.parents[1]
ROWS: dict[str, dict[str, Any]] = {
    f"{table}.{name}": values for table, names in read_toml(PAPER).items() for name, values in names.items()
}
ALL = Models("dvis", "beit3", "vita", "mask2former", "bert", {}, {}, 1)
PUBLISHED = {
    "table_1_mevis": [51.8, 60.6, 56.0, 61.5, 49.3, 58.3, 51.3, 57.8],
    "table_2_single_object": [70.0, 69.3],
    "table_3_trajectories": [55.5, 56.0, 57.4],
    "table_4_understanding": [55.9, 57.4],
    "table_5_module": [56.1, 56.5, 57.4],
    "table_6_tracker": [53.4, 57.4, 53.8, 55.4, 57.4],
}
"""The numbers of `shared/papers/derovs_summary.txt`, in its order."""


def benchmark_of(values: dict[str, Any]) -> str:
    return "paper" if "paper" in values else "ref_youtube_vos"


def test_every_number_of_the_summary_is_there() -> None:
    tables = {table: [row[benchmark_of(row)][0] for row in rows.values()] for table, rows in read_toml(PAPER).items()}
    assert tables == PUBLISHED


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_settings_away_or_says_why_not(row: str) -> None:
    values = ROWS[row]
    assert ("set" in values) != ("reason" in values) and ("upstream" in values) == ("set" in values)
    if "reason" in values:
        with pytest.raises(InputError, match=r"cannot be trained here: \w") as error:
            published_row(row, benchmark_of(values))
        assert "\n" not in str(error.value)
        return
    published = published_row(row, benchmark_of(values))
    assert published["scores"] == values[benchmark_of(values)]
    name = "dervos_mevis" if "paper" in values else "dervos_single_object"
    page = build(TrainSettings, merge(read_toml(PAGES / f"{name}.toml"), parse_overrides(published["set"])), "page")
    config = build(DervosConfig, page.config, "row")
    changed = {field for field in DervosConfig.model_fields if getattr(config, field) != getattr(DervosConfig(), field)}
    assert changed == {text.partition("=")[0].removeprefix("config.") for text in published["set"]}
    arguments = ALL.extraction(published)
    tracker = {"dvis": DvisSettings, "vita": VitaSettings}[arguments["tracker"]]
    build(tracker, arguments["overrides"], row)
    encoder = {"beit3": Beit3Settings, "roberta": RobertaSettings}[arguments["encoder"]]
    assert build(encoder, arguments["text_overrides"], row).normalise == "lower"
    assert bool(arguments["also"]) == (config.understanding == "beit3")


def test_rows_that_differ_in_the_summary_differ_here() -> None:
    """Rows of other numbers have other settings, or other checkpoints."""
    own: dict[str, set[float]] = {}
    for row, values in ROWS.items():
        if "set" in values and not row.startswith("table_1"):
            key = json.dumps([values["set"], values.get("tracker_set"), values.get("tracker"), values["upstream"], row[:7]])
            own.setdefault(key, set()).add(values[benchmark_of(values)][0])
    assert {key for key, numbers in own.items() if len(numbers) > 1} == {
        json.dumps([[], None, None, "DVIS++ offline, R50, YouTube-VIS 2019 or 2021; BEiT-3 base", "table_6"])
    }


def test_caches_are_shared_by_the_rows_of_one_upstream() -> None:
    names = {row: ALL.name(published_row(row, "paper")) for row, values in ROWS.items() if "set" in values and "paper" in values}
    assert names[MAIN] == names["table_5_module.cfma"] == names["table_4_understanding.bert"] == "dvis"
    assert names["table_3_trajectories.mask2former"] == "mask2former-generator_frames"
    assert names["table_6_tracker.side_320"] == "dvis-side_320" and names["table_3_trajectories.vita"] == "vita-pool_20"
    assert build(FramesSettings, FRAMES, "frames").stored_size((360, 640)) == (320, 320)
    caches = Caches(Path("c"), ALL.extraction(published_row(MAIN, "paper")))
    assert [path.name for path in caches.tracks("train")] == ["dvis.zarr", "frames.zarr"]


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        (MAIN, "dvis"), (MAIN, "beit3"), ("table_3_trajectories.vita", "vita"), ("table_3_trajectories.mask2former", "mask2former"),
        ("table_3_trajectories.vita", "beit3"), ("table_4_understanding.bert", "dvis"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_missing_is_one_line(row: str, missing: str) -> None:
    models = Models(**{**vars(ALL), missing: None})
    with pytest.raises(InputError, match=f"this row is of .*: it needs the option --{missing} FOLDER"):
        models.extraction(published_row(row, "paper"))


def test_checkpoints_that_a_row_does_not_read_are_not_asked_for() -> None:
    Models(None, "beit3", "vita", None, "bert", {}, {}, 1).extraction(published_row("table_3_trajectories.vita", "paper"))
    Models("dvis", None, None, None, "bert", {}, {}, 1).extraction(published_row("table_4_understanding.bert", "paper"))


def test_an_unknown_row_is_one_line() -> None:
    with pytest.raises(InputError, match=r"no row 'table_9' of this benchmark; there are: table_1_mevis.val, ") as error:
        published_row("table_9", "paper")
    assert "\n" not in str(error.value) and "glus" not in str(error.value)
    with pytest.raises(InputError, match=f"no row '{ROW}' of this benchmark"):
        published_row(ROW, "paper")


def test_the_schedules_are_dvis_s() -> None:
    """40,000 steps of 8 clips at 1e-4, a tenth from 28,000 on."""
    for name, sentences in (("dervos_mevis", 23_051), ("dervos_single_object", 12_913)):
        values = build(TrainSettings, read_toml(PAGES / f"{name}.toml"), name)
        steps = values.epochs * sentences / values.batch_size
        assert steps == pytest.approx(40_000, rel=0.015) and values.optim.milestones[0] * steps == pytest.approx(
            28_000, rel=0.015
        )
        assert (values.batch, values.batch_size, values.clip.frames, values.clip.within, values.clip.anywhere) == (
            "clip",
            8,
            8,
            10,
            0.5,
        )
        optim = values.optim
        assert (optim.lr, optim.weight_decay, optim.decay_all, optim.clip, optim.factor) == (1e-4, 0.05, False, 0.01, 0.1)


SMALL = {
    "epochs": 1, "batch_size": 2, "clip.frames": 3, "config.width": 16, "config.hidden": 16, "config.sem_layers": 1,
    "config.cfma_layers": 1, "config.mgis_layers": 1, "config.motion_queries": 3,
}  # fmt: skip


def words_of(option: str, settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (option, f"{name}={value}")]


def run_page(monkeypatch: pytest.MonkeyPatch, page: Any, *words: object) -> None:
    own = [*words_of("--tracker-set", tiny_dvis.SMALL), *words_of("--frames-set", {"square": 64}), *words_of("--set", SMALL)]
    monkeypatch.setattr(sys, "argv", ["page", *map(str, words), *own])
    page(standalone_mode=False)


@pytest.mark.slow
def test_from_frames_to_scores_and_zip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    for split, videos in (("train", ("t0",)), ("valid_u", ("u0",)), ("valid", ("v0",))):
        write_split(root / split, dict.fromkeys(videos, (5, True, SAID)))
    hide(root / "valid")
    dvis, beit3 = tiny_dvis.write_checkpoint(tmp_path / "dvis"), write_tiny_beit3(tmp_path / "beit3")
    given = ["--root", root, "--dvis", dvis, "--beit3", beit3, "--out", tmp_path / "out"]
    run_page(monkeypatch, dervos_mevis, *given, "--row", "table_5_module.cfma")
    printed = capsys.readouterr().out
    assert "the paper, valid_u: J&F 56.5, with DVIS++ offline, R50" in printed and "threshold 0.8" in printed
    row = tmp_path / "out/table_5_module.cfma"
    settings = json.loads((row / "run/settings.json").read_text())
    config = settings["resolved"]["config"]
    assert (config["mgis"], config["side"], config["resample"], config["map_channels"]) == (False, 64, "bicubic", 32)
    assert len(json.loads((row / "metrics.json").read_text())["expressions"]) == len(SAID)
    names = zipfile.ZipFile(row / "mevis_valid.zip").namelist()
    assert len([name for name in names if name.endswith(".png")]) == 5 * len(SAID)
    first = (row / "run/last/model.safetensors").stat().st_mtime_ns
    run_page(monkeypatch, dervos_mevis, *given, "--row", "table_5_module.cfma")
    assert (row / "run/last/model.safetensors").stat().st_mtime_ns == first
    # Another row of the same caches.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cache").rglob("zarr.json")}
    run_page(monkeypatch, dervos_mevis, *given, "--row", "table_5_module.text_direct_integrator")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cache").rglob("zarr.json")} == before


@pytest.mark.slow
def test_the_row_of_vita(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    for split in ("train", "valid_u"):
        write_split(root / split, {f"{split}0": (4, True, SAID)})
    vita, beit3 = tiny_vita.write_checkpoint(tmp_path / "vita"), write_tiny_beit3(tmp_path / "beit3")
    monkeypatch.setattr(tiny_dvis, "SMALL", {**tiny_vita.SMALL, "max_tracks": 4, "pool": 4})
    given = ["--root", root, "--vita", vita, "--beit3", beit3, "--out", tmp_path / "out"]
    run_page(monkeypatch, dervos_mevis, *given, "--row", "table_3_trajectories.vita")
    assert "the paper, valid_u: J&F 56.0, with VITA" in capsys.readouterr().out
    settings = json.loads((tmp_path / "out/table_3_trajectories.vita/run/settings.json").read_text())
    config = settings["resolved"]["config"]
    assert (config["queries"], config["query_channels"], config["match_cost"]) == ("q_v", tiny_vita.CHANNELS, "soft")
    assert config["map_channels"] == tiny_vita.CHANNELS


@pytest.mark.slow
def test_the_page_of_one_object_each_answers_with_the_best_track(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dvis, beit3 = tiny_dvis.write_checkpoint(tmp_path / "dvis"), write_tiny_beit3(tmp_path / "beit3")
    roots = ["--youtube", write_youtube(tmp_path / "yt"), "--davis", write_davis(tmp_path / "dv")]
    monkeypatch.setitem(SMALL, "epochs", 1)
    run_page(monkeypatch, dervos_single_object, *roots, "--dvis", dvis, "--beit3", beit3, "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "the paper, ref-youtube-vos valid: J&F 70.0" in printed and "the paper, ref-davis17 valid: no number" in printed
    for name, split in (("ref-youtube-vos", "held_out"), ("ref-davis17", "valid")):
        assert resolve_policy(SelectionCache(tmp_path / f"out/selections/{name}-{split}.zarr")).top1
        assert json.loads((tmp_path / f"out/metrics/{name}.json").read_text())["dataset"] == name
        assert read_card(tmp_path / f"out/cache/{name}/{split}/frames.zarr").settings["square"] == 64
    for name, first in (("ref-youtube-vos", "Annotations/hidden/0/00000.png"), ("ref-davis17", "anno_0/d0/00000.png")):
        with zipfile.ZipFile(tmp_path / f"out/{name}_valid.zip") as archive:
            assert archive.namelist()[0] == first
