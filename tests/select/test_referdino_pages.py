"""ReferDINO's pages: every row of the paper is settings away or says why not; from frames to scores and the zips."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from test_dmvs_pages import hide
from test_sola_pages import write_davis, write_youtube
from tiny_grounding_dino import tiny_grounding_dino

from pipelines import referdino_mevis, referdino_single_object
from pipelines.referdino_models import PAPER, Models, published_row, published_scores
from rvos_cache.errors import InputError
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.store import SelectionCache, read_card
from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings
from rvos_cache.trackers.sam2.settings import BoxSettings
from rvos_select.merging.policy import resolve_policy
from rvos_select.selectors.referdino import ReferDinoConfig
from rvos_select.training.settings import TrainSettings

sys.path.insert(0, str(Path(__file__).parents[1]))
from odd_videos import SAID, write_split

PAGES = PAPER.parents[1]
ROWS: dict[str, dict[str, Any]] = {
    f"{table}.{name}": values for table, names in read_toml(PAPER).items() for name, values in names.items()
}
BENCHMARKS = ("mevis", "ref-youtube-vos", "ref-davis17", "a2d-sentences", "jhmdb-sentences")
LIVE = Models(None, None, {}, 1)
RELEASED = {"ryt_swinb.pth", "mevis_swinb.pth"}
REGION_CONTOUR = ("paper", "ref_youtube_vos", "ref_davis17")
PRINTED = ("table_1_benchmarks.grounded_sam2_t",)
"""Rows whose J&F is not the mean of J and F in the paper either."""


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_settings_away_or_says_why_not(row: str) -> None:
    values = ROWS[row]
    assert ("reach" in values) != ("reason" in values)
    for key in REGION_CONTOUR:
        if values.get(key) and row not in PRINTED:
            assert abs(values[key][0] - (values[key][1] + values[key][2]) / 2) < 0.11
    if "reason" in values:
        if "tracker" in values:
            build(BoxSettings, parse_overrides(values["tracker"]), row)
        with pytest.raises(InputError, match=r"is not trained here: \w"):
            published_row(row, "mevis", LIVE)
        return
    assert set(values["reach"]) <= {"import", "tune", "cached"}
    assert ("import" in values["reach"]) == ("checkpoint" in values) == row.endswith("referdino_b")
    assert values.get("checkpoint", "mevis_swinb.pth") in RELEASED
    if "cached" not in values["reach"]:
        with pytest.raises(InputError, match=f"rvos-cache tune-referdino --set {values['tune'][0]}"):
            published_row(row, "mevis", LIVE)
        return
    name = "referdino_mevis" if row.startswith(("table_2", "table_3", "table_4", "figure")) else "referdino_single_object"
    page = read_toml(PAGES / f"{name}.toml")
    settings = build(TrainSettings, merge(page, parse_overrides(values["set"])), "page")
    plain = build(ReferDinoConfig, page.get("config", {}), "page")
    config = build(ReferDinoConfig, settings.config, "row")
    changed = {field for field in ReferDinoConfig.model_fields if getattr(config, field) != getattr(plain, field)}
    unchanged = {"alpha"} if "config.alpha=0.1" in values["set"] else set()
    assert changed | unchanged == {text.partition("=")[0].removeprefix("config.") for text in values["set"]}
    build(GdinoQueriesSettings, parse_overrides(values.get("tracker", [])), row)


def test_every_number_is_the_paper_s() -> None:
    """Each row's numbers are a line of the paper's text, in its order."""
    path = Path(__file__).parents[3] / "shared/papers/referdino.txt"
    if not path.is_file():
        pytest.skip(f"no text of the paper at {path}")
    lines = path.read_text("utf-8").splitlines()
    printed = {tuple(re.findall(r"(?<!\S)\d+\.\d(?!\S)", line)) for line in lines}
    for row, values in ROWS.items():
        keys = ("ref_youtube_vos", "ref_davis17", "a2d_sentences", "jhmdb_sentences", "paper")
        numbers = tuple(str(number) for key in keys for number in values.get(key, []))
        assert (numbers == () and row.startswith("figure_7")) or numbers in printed, row


def test_every_table_is_there() -> None:
    counts = {table: len(rows) for table, rows in read_toml(PAPER).items()}
    assert list(counts.values()) == [16, 8, 3, 5, 5, 3]


def test_settings_are_the_released_ones() -> None:
    """Rates, drops and losses of the configurations mevis_swint, mevis_swinb and ytvos."""
    mevis, youtube = (read_toml(PAGES / f"referdino_{name}.toml") for name in ("mevis", "single_object"))
    assert (mevis["optim"]["lr"], youtube["optim"]["lr"]) == (1e-4, 5e-5)
    assert {**youtube, "optim": {**youtube["optim"], "lr": 1e-4}, "config": {}} == {**mevis, "config": {}}
    swin_b = merge(mevis, parse_overrides(ROWS["table_2_mevis.referdino_b"]["set"]))
    for page, costs in ((mevis, (2, 1, 1, 5, 5)), (swin_b, (1, 3, 3, 5, 4)), (youtube, (4, 5, 2, 5, 5))):
        losses = build(ReferDinoConfig, page.get("config", {}), "page").losses()
        assert tuple(losses.costs.values()) == costs and tuple(losses.weights.values()) == costs[:3]


def test_rows_of_another_benchmark_or_without_weights_are_one_line() -> None:
    imported = Models(None, Path("run"), {}, 1)
    for row, benchmark, models, reason in (
        ("table_9", "mevis", LIVE, r"no row 'table_9' of mevis; there are: table_2_mevis.referdino_t, "),
        ("table_5_pruning.drop_50", "mevis", LIVE, "no row 'table_5_pruning.drop_50' of mevis"),
        ("table_2_mevis.referdino_t", "mevis", imported, "no weights of the row 'table_2_mevis.referdino_t' were released"),
    ):
        with pytest.raises(InputError, match=reason) as fault:
            published_row(row, benchmark, models)
        assert "\n" not in str(fault.value) and "mttr" not in str(fault.value)
    assert published_row("table_2_mevis.referdino_b", "mevis", imported)["scores"] == [49.3, 44.7, 53.9]
    assert published_scores([]) == "no number"


def test_rows_share_the_caches_of_an_upstream_and_its_settings() -> None:
    folders = {row: LIVE.name(values) for row, values in ROWS.items() if "cached" in values.get("reach", ())}
    assert len(set(folders.values())) == 5
    assert folders["table_3_temporal.without_tracker"] == folders["table_2_mevis.referdino_t"] == "grounding-dino-tiny"
    assert folders["table_5_pruning.random_50"] == "grounding-dino-tiny-prune_score_random"
    extraction = Models(None, Path("out/run"), {"short_side": 64}, 2).extraction(ROWS["table_2_mevis.referdino_b"])
    assert extraction["overrides"] == {"checkpoint": "out/run/upstream", "masks": "head", "short_side": 64}


def called(monkeypatch: pytest.MonkeyPatch, page: Any, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["page", *map(str, words)])
    page(standalone_mode=False)


def test_an_imported_run_without_its_upstream_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, reason in (
        (("--imported", tmp_path), "has no folder 'upstream'"),
        (("--imported", tmp_path, "--upstream", "x"), "--imported brings its own upstream"),
    ):
        with pytest.raises(InputError, match=reason):
            called(monkeypatch, referdino_mevis.referdino_mevis, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


SMALL = {"epochs": 1, "batch_size": 2, "clip.frames": 3, "config.hidden": 16, "config.temporal_layers": 1}
TRACKER = ("--tracker-set", "masks=box", "--tracker-set", "short_side=32")


def words_of(settings: dict[str, Any]) -> list[str]:
    """Settings as options of a page."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def test_from_frames_to_scores_and_zip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, upstream = tmp_path / "data", tiny_grounding_dino(tmp_path / "tiny")
    for split, videos in (("train", ("t0",)), ("valid_u", ("u0",)), ("valid", ("v0",))):
        write_split(root / split, dict.fromkeys(videos, (4, True, SAID)))
    hide(root / "valid")
    page, out = referdino_mevis.referdino_mevis, tmp_path / "out"
    words = ("--root", root, "--out", out, "--upstream", upstream, *TRACKER, *words_of(SMALL))
    called(monkeypatch, page, *words)
    row = out / "table_2_mevis.referdino_t"
    assert "the paper, valid: J&F 48.0, J 43.6, F 52.3" in capsys.readouterr().out
    record = json.loads((row / "run/settings.json").read_text())
    assert record["resolved"]["config"]["token_channels"] == 64 and record["resolved"]["config"]["tracker"] == "cached"
    assert len(json.loads((row / "metrics.json").read_text())["expressions"]) == len(SAID)
    assert read_card(out / "cache/tiny/valid/gdino-queries.zarr").settings["masks"] == "box"
    names = zipfile.ZipFile(row / "mevis_valid.zip").namelist()
    assert len([name for name in names if name.endswith(".png")]) == 4 * len(SAID)
    written = (row / "run/last/model.safetensors").stat().st_mtime_ns
    called(monkeypatch, page, *words)
    assert (row / "run/last/model.safetensors").stat().st_mtime_ns == written
    # Another alignment reads the same caches.
    called(monkeypatch, page, *words, "--row", "figure_7_memory.alpha_1")
    assert "the paper, valid: no number" in capsys.readouterr().out
    selections = SelectionCache(out / "figure_7_memory.alpha_1/selections/valid_u.zarr").selections("u0")
    assert all(selection.parts is not None for selection in selections)


@pytest.mark.slow
def test_one_object_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    roots = ("--youtube", write_youtube(tmp_path / "yt"), "--davis", write_davis(tmp_path / "dv"), "--out", tmp_path / "out")
    upstream = tiny_grounding_dino(tmp_path / "tiny")
    words = (*roots, "--upstream", upstream, "--row", "table_5_pruning.drop_65", *TRACKER, *words_of(SMALL))
    called(monkeypatch, referdino_single_object.referdino_single_object, *words)
    printed = capsys.readouterr().out
    assert "the paper, ref-youtube-vos valid: J&F 66.0, J 64.0" in printed and "ref-davis17 valid: no number" in printed
    row = tmp_path / "out/table_5_pruning.drop_65"
    assert (
        read_card(tmp_path / "out/cache/tiny-keep_ratio_0.35/ref-davis17/valid/gdino-queries.zarr").settings["keep_ratio"] == 0.35
    )
    assert set(json.loads((row / "run/settings.json").read_text())["sets"]) == {"ref-youtube-vos/fit"}
    for name, split in referdino_single_object.OPEN.items():
        assert resolve_policy(SelectionCache(row / f"selections/{name}-{split}.zarr")).top1
        assert json.loads((row / f"metrics/{name}.json").read_text())["dataset"] == name
    for name, first in (("ref-youtube-vos", "Annotations/hidden/0/00000.png"), ("ref-davis17", "anno_0/d0/00000.png")):
        with zipfile.ZipFile(row / f"{name}_valid.zip") as archive:
            assert archive.namelist()[0] == first
