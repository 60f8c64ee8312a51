"""DeRVOS's pages: every row of the summary is settings away or says why not; from frames to scores and the zips."""

from __future__ import annotations

import json
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tiny_dvis
import tiny_vita
from click.testing import CliRunner
from test_dmvs_pages import hide
from test_sola_pages import write_davis, write_youtube
from text_fixtures import tiny_roberta
from tiny_beit3 import write_tiny_beit3

from pipelines.dervos_mevis import MAIN, dervos_mevis
from pipelines.dervos_models import (
    FRAMES,
    PAPER,
    Caches,
    Models,
    all_rows,
    changed,
    published_row,
    run_with,
    warn_of_other_weights,
)
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
from rvos_select.selectors.dervos.config import DervosConfig
from rvos_select.training.settings import TrainSettings

sys.path.insert(0, str(Path(__file__).parents[1]))
from odd_videos import EXPRESSIONS, write_split

PAGES = PAPER.parents[1]
ROWS = all_rows()
ALL = Models("dvis", "beit3", "vita", "mask2former", "bert", {}, {}, 1)
PUBLISHED = {
    "table_1": [51.8, 60.6, 56.0, 61.5, 49.3, 58.3, 51.3, 57.8],
    "table_2": [70.0, 69.3],
    "table_3": [55.5, 56.0, 57.4],
    "table_4": [55.9, 57.4],
    "table_5": [56.1, 56.5, 57.4],
    "table_6": [53.4, 57.4, 53.8, 55.4, 57.4],
}
"""The numbers of `shared/papers/derovs_summary.txt`, in its order."""


def dataset_of(row: str) -> str:
    """The dataset of the row's published numbers."""
    return next(iter(ROWS[row]["paper"])).partition("/")[0]


def test_every_number_of_the_summary_is_there() -> None:
    tables: dict[str, list[float]] = {}
    for row, values in ROWS.items():
        tables.setdefault(row.partition(".")[0], []).append(next(iter(values["paper"].values()))[0])
    assert tables == PUBLISHED


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_settings_away_or_says_why_not(row: str) -> None:
    values = ROWS[row]
    assert ("set" in values) != ("reason" in values) and ("upstream" in values) == ("set" in values)
    if "reason" in values:
        with pytest.raises(InputError, match=r"cannot be trained here: \w") as error:
            published_row(row, dataset_of(row))
        assert "\n" not in str(error.value)
        return
    published = published_row(row, dataset_of(row))
    name = "dervos_mevis" if dataset_of(row) == "mevis" else "dervos_single_object"
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
            own.setdefault(key, set()).add(next(iter(values["paper"].values()))[0])
    assert {key for key, numbers in own.items() if len(numbers) > 1} == {
        json.dumps([[], [], "dvis", "DVIS++ offline, R50, trained on YouTube-VIS 2019 or 2021; BEiT-3 base", "table_6"])
    }


def test_caches_are_shared_by_the_rows_of_one_upstream() -> None:
    names = {
        row: ALL.name(published_row(row, "mevis"))
        for row, values in ROWS.items()
        if "set" in values and dataset_of(row) == "mevis"
    }
    assert names[MAIN] == names["table_5.cfma"] == names["table_4.bert"] == "dvis"
    assert names["table_3.mask2former"] == "mask2former-generator_frames"
    assert names["table_6.side_320"] == "dvis-side_320" and names["table_3.vita"] == "vita-pool_20"
    assert build(FramesSettings, FRAMES, "frames").stored_size((360, 640)) == (320, 320)
    # The name of what is in it, also where the command line replaces what the row is about.
    other = Models(**{**vars(ALL), "tracker": {"side": 64}})
    assert other.name(published_row("table_6.side_320", "mevis")) == "dvis-side_64"
    caches = Caches(Path("c"), ALL.extraction(published_row(MAIN, "mevis")))
    assert [path.name for path in caches.tracks("train")] == ["dvis.zarr", "frames.zarr"]


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        (MAIN, "dvis"), (MAIN, "beit3"), ("table_3.vita", "vita"), ("table_3.mask2former", "mask2former"),
        ("table_3.vita", "beit3"), ("table_4.bert", "dvis"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_missing_is_one_line(row: str, missing: str) -> None:
    models = Models(**{**vars(ALL), missing: None})
    with pytest.raises(InputError, match=f"this row is of .*: it needs the option --{missing} FOLDER"):
        models.extraction(published_row(row, "mevis"))


def test_weights_of_another_kind_than_the_row_s_are_warned_of(tmp_path: Path) -> None:
    """A tiny DVIS++ with a ResNet, and a BEiT-3 of the width of base."""
    folders = {"dvis": tiny_dvis.write_checkpoint(tmp_path / "dvis"), "beit3": tmp_path / "beit3"}
    folders["beit3"].mkdir()
    (folders["beit3"] / "config.json").write_text(json.dumps({"width": 768}))
    models = Models(**{**vars(ALL), **{name: str(folder) for name, folder in folders.items()}})

    def said(row: str) -> list[str]:
        published = published_row(row, "mevis")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_of_other_weights(published, models.extraction(published))
        return [str(warning.message).partition(": ")[2] for warning in caught]

    assert said(MAIN) == [] == said("table_4.bert")
    refined = said("table_1.pretrained_val_u")
    assert [line.partition(";")[0] for line in refined] == [
        "its backbone is resnet", "its refiner was not replaced: run stage 0 and replace-refiner first", "BEiT-3 of 768 channels",
    ]  # fmt: skip
    assert all("the row's numbers are of DVIS++ offline, ViT-L" in line and "BEiT-3 large" in line for line in refined)
    (folders["dvis"] / "conversion.json").write_text(json.dumps({"refiner": {"step": 2}}))
    assert [line.partition(";")[0] for line in said(MAIN)] == ["its refiner was replaced by that of a stage 0"]


def test_a_page_without_rows_offers_no_option_of_another_row() -> None:
    texts = [CliRunner().invoke(page, ["--help"]).output for page in (dervos_mevis, dervos_single_object)]
    assert [("--vita" in text, "row" in text.partition("Options")[2]) for text in texts] == [(True, True), (False, False)]


def test_only_what_was_replaced_is_a_change() -> None:
    assert ALL.changes(()) == "" == run_with("") and changed("a row", "") == "a row"
    models = Models(**{**vars(ALL), "frames": {"square": 64}})
    assert models.changes(["epochs=1"]) == "--set epochs=1 --frames-set square=64"


def test_checkpoints_that_a_row_does_not_read_are_not_asked_for() -> None:
    Models(None, "beit3", "vita", None, "bert", {}, {}, 1).extraction(published_row("table_3.vita", "mevis"))
    Models("dvis", None, None, None, "bert", {}, {}, 1).extraction(published_row("table_4.bert", "mevis"))


def test_an_unknown_row_is_one_line() -> None:
    with pytest.raises(InputError, match=r"no row 'table_9' of mevis; there are: table_1.val, ") as error:
        published_row("table_9", "mevis")
    assert "\n" not in str(error.value) and "glus" not in str(error.value)
    with pytest.raises(InputError, match=f"no row '{ROW}' of mevis"):
        published_row(ROW, "mevis")


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "config.width=-3"], r"selector dervos: setting 'width': .* got -3"),
        (["--set", "optim.rates={nothing: 0.1}"], "nothing"),
        (
            ["--frames-set", "square=320"],
            "f_mask_pooled of 4 x 4 cells, BEiT-3 has 20 x 20 patches of a frame of the cache mevis/train of frames .* extract these "
            "tracks with --tracker-set pool=20, or the frames with --frames-set square=64$",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_extraction(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "valid_u"):
        write_split(tmp_path / "data" / split, {f"{split}0": (4, True, EXPRESSIONS)})
    dvis, beit3 = tiny_dvis.write_checkpoint(tmp_path / "dvis"), write_tiny_beit3(tmp_path / "beit3")
    own = [*words_of("--tracker-set", tiny_dvis.SMALL), *words_of("--frames-set", {"square": 64}), *words_of("--set", SMALL)]
    given = ["--root", tmp_path / "data", "--dvis", dvis, "--beit3", beit3, "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["page", *map(str, given), *own, *words])
    with pytest.raises(InputError, match=message):
        dervos_mevis(standalone_mode=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_from_frames_to_scores_and_zip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    for split, videos in (("train", ("t0",)), ("valid_u", ("u0",)), ("valid", ("v0",))):
        write_split(root / split, dict.fromkeys(videos, (5, True, EXPRESSIONS)))
    hide(root / "valid")
    dvis, beit3 = tiny_dvis.write_checkpoint(tmp_path / "dvis"), write_tiny_beit3(tmp_path / "beit3")
    given = ["--root", root, "--dvis", dvis, "--beit3", beit3, "--out", tmp_path / "out"]
    run_page(monkeypatch, dervos_mevis, *given, "--row", "table_5.cfma")
    printed = capsys.readouterr().out
    assert "the paper: mevis/valid_u J&F 56.5, with DVIS++ offline, R50" in printed and "threshold 0.8" in printed
    assert "tracks' oracle, valid_u" in printed
    # As the board marks its scores.
    assert "not the row as it is, run with --set epochs=1 " in printed and "--tracker-set side=64" in printed
    assert "table_5.cfma, valid_u, changed settings" in (tmp_path / "out/table_5.cfma/report/index.html").read_text()
    row = tmp_path / "out/table_5.cfma"
    settings = json.loads((row / "run/settings.json").read_text())
    config = settings["resolved"]["config"]
    assert (config["mgis"], config["side"], config["resample"], config["map_channels"]) == (False, 64, "bicubic", 32)
    assert len(json.loads((row / "metrics.json").read_text())["expressions"]) == len(EXPRESSIONS)
    names = zipfile.ZipFile(row / "mevis_valid.zip").namelist()
    assert len([name for name in names if name.endswith(".png")]) == 5 * len(EXPRESSIONS)
    first = (row / "run/last/model.safetensors").stat().st_mtime_ns
    run_page(monkeypatch, dervos_mevis, *given, "--row", "table_5.cfma")
    assert (row / "run/last/model.safetensors").stat().st_mtime_ns == first
    # Another row of the same caches.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cache").rglob("zarr.json")}
    run_page(monkeypatch, dervos_mevis, *given, "--row", "table_5.text_direct_integrator")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cache").rglob("zarr.json")} == before


@pytest.mark.slow
def test_the_row_of_vita(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    for split in ("train", "valid_u"):
        write_split(root / split, {f"{split}0": (4, True, EXPRESSIONS)})
    vita, beit3 = tiny_vita.write_checkpoint(tmp_path / "vita"), write_tiny_beit3(tmp_path / "beit3")
    monkeypatch.setattr(tiny_dvis, "SMALL", {**tiny_vita.SMALL, "max_tracks": 4, "pool": 4})
    given = ["--root", root, "--vita", vita, "--beit3", beit3, "--out", tmp_path / "out"]
    run_page(monkeypatch, dervos_mevis, *given, "--row", "table_3.vita")
    assert "the paper: mevis/valid_u J&F 56.0, with VITA" in capsys.readouterr().out
    settings = json.loads((tmp_path / "out/table_3.vita/run/settings.json").read_text())
    config = settings["resolved"]["config"]
    assert (config["queries"], config["query_channels"], config["match_cost"]) == ("q_v", tiny_vita.CHANNELS, "soft")
    assert config["map_channels"] == tiny_vita.CHANNELS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "score"), [("table_3.mask2former", 55.5), ("table_4.bert", 55.9), ("table_1.pretrained_val_u", 61.5)]
)
def test_rows_of_other_models(
    row: str, score: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    for split in ("train", "valid_u"):
        write_split(root / split, {f"{split}0": (4, True, EXPRESSIONS)})
    (tmp_path / "words").mkdir()
    checkpoints = {
        "dvis": tiny_dvis.write_checkpoint(tmp_path / "dvis"), "beit3": write_tiny_beit3(tmp_path / "beit3"),
        "bert": tiny_roberta(tmp_path / "words", list(EXPRESSIONS)),
    }  # fmt: skip
    if row.endswith("mask2former"):
        checkpoints["mask2former"] = checkpoints.pop("dvis")
        (checkpoints["mask2former"] / tiny_dvis.HEAD_FILE).unlink()
    if row.endswith("bert"):
        checkpoints.pop("beit3")
    given = [word for name, folder in checkpoints.items() for word in (f"--{name}", folder)]
    run_page(monkeypatch, dervos_mevis, "--root", root, "--out", tmp_path / "out", *given, "--row", row)
    assert f"the paper: mevis/valid_u J&F {score}, with" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / row / "run/settings.json").read_text())
    config = record["resolved"]["config"]
    assert (config["understanding"] == "words") == row.endswith("bert") == ("beit3" not in record["frozen"])
    assert config["token_channels"] == (tiny_dvis.CHANNELS if row.endswith("mask2former") else tiny_dvis.WIDTH)


@pytest.mark.slow
def test_the_page_of_one_object_each_answers_with_the_best_track(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dvis, beit3 = tiny_dvis.write_checkpoint(tmp_path / "dvis"), write_tiny_beit3(tmp_path / "beit3")
    roots = ["--youtube", write_youtube(tmp_path / "yt"), "--davis", write_davis(tmp_path / "dv")]
    monkeypatch.setitem(SMALL, "epochs", 1)
    run_page(monkeypatch, dervos_single_object, *roots, "--dvis", dvis, "--beit3", beit3, "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    assert ": ref-youtube-vos/valid J&F 70.0;" in printed and ": no number of ref-davis17/valid;" in printed
    for name, split in (("ref-youtube-vos", "held_out"), ("ref-davis17", "valid")):
        assert resolve_policy(SelectionCache(tmp_path / f"out/selections/{name}-{split}.zarr")).top1
        assert json.loads((tmp_path / f"out/metrics/{name}.json").read_text())["dataset"] == name
        assert read_card(tmp_path / f"out/cache/{name}/{split}/frames.zarr").settings["square"] == 64
    for name, first in (("ref-youtube-vos", "Annotations/hidden/0/00000.png"), ("ref-davis17", "anno_0/d0/00000.png")):
        with zipfile.ZipFile(tmp_path / f"out/{name}_valid.zip") as archive:
            assert archive.namelist()[0] == first
