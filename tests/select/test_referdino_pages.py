"""ReferDINO's pages: every row of the paper is settings away or says why not; from frames to scores and the zips."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from released_referdino import shared_grounding, shared_released
from test_dmvs_pages import hide
from test_sola_pages import write_davis, write_youtube
from tiny_grounding_dino import tiny_grounding_dino
from tiny_referdino_pages import TRACKER, called, words_of, write_images
from tiny_sam2 import shared_checkpoint

from pipelines import dmvs_mevis, dmvs_single_object, referdino_images, referdino_mevis, referdino_single_object, sola_zero_shot
from pipelines.referdino_models import Models
from pipelines.referdino_rows import PAPER, all_rows, published_row, published_scores, way_line
from pipelines.rows.papers import read_paper
from rvos_cache.errors import InputError
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.store import SelectionCache, read_card
from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings
from rvos_cache.trackers.referdino.tune_settings import tune_settings
from rvos_cache.trackers.sam2.settings import BoxSettings
from rvos_cache.trackers.sam2.tracker import prompt_frames
from rvos_select.exchange.import_referdino import import_referdino
from rvos_select.merging.policy import resolve_policy
from rvos_select.selectors.referdino import ReferDinoConfig
from rvos_select.training.settings import TrainSettings

sys.path.insert(0, str(Path(__file__).parents[1]))
from odd_videos import EXPRESSIONS, write_split

PAGES = PAPER.parents[1]
ROWS = all_rows()
BENCHMARKS = ("mevis", "ref-youtube-vos", "ref-davis17", "a2d-sentences", "jhmdb-sentences")
LIVE = Models(None, None, {}, 1)
PRINTED = ("table_1.grounded_sam2_t",)
"""Rows whose J&F is not the mean of J and F in the paper either."""


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_settings_away_or_says_why_not(row: str) -> None:
    values = ROWS[row]
    assert ("reach" in values) != ("reason" in values)
    for split, numbers in values["paper"].items():
        if numbers and row not in PRINTED and not split.endswith("-frames"):
            assert abs(numbers[0] - (numbers[1] + numbers[2]) / 2) < 0.11
    if "reason" in values:
        assert values["reason"] == "another system"
        with pytest.raises(InputError, match=r"is not trained here: \w"):
            published_row(row, "mevis", LIVE)
        return
    assert set(values["reach"]) <= {"import", "tune", "cached", "baseline"}
    assert ("baseline" in values["reach"]) == ("grounded_sam2" in row)
    if "baseline" in values["reach"]:
        settings = build(BoxSettings, parse_overrides(values["tracker"]), row)
        assert settings.grounding_checkpoint == values["upstream"] and list(prompt_frames(200, settings)) == [0]
        return
    if "tune" in values["reach"]:
        tuning = tune_settings(parse_overrides(values.get("tune", [])))
        # What the tracker is tuned with, it runs with.
        tracker = build(GdinoQueriesSettings, parse_overrides(values.get("tracker", [])), row)
        assert all(getattr(tuning, name) == getattr(tracker, name) for name in ("keep_ratio", "prune_score"))
    assert ("import" in values["reach"]) == row.endswith(("referdino_b", "referdino_b_images"))
    if "cached" not in values["reach"]:
        assert LIVE.way_of(values) == "tune"
        return
    name = "referdino_mevis" if row.startswith(("table_2", "table_3", "table_4", "figure")) else "referdino_single_object"
    page = read_toml(PAGES / f"{'referdino_images' if row.endswith('_images') else name}.toml")
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
        # A line of Table 1 has the video benchmarks and those of single frames.
        of_line = [values["paper"], ROWS.get(f"{row}_images", {"paper": {}})["paper"]]
        numbers = tuple(str(number) for paper in of_line for tested in paper.values() for number in tested)
        assert row.endswith("_images") or (numbers == () and row.startswith("figure_7")) or numbers in printed, row


def test_every_table_is_there() -> None:
    counts = Counter(row.partition(".")[0] for row in ROWS if not row.endswith("_images"))
    assert list(counts.values()) == [16, 8, 3, 5, 5, 3]


def test_settings_are_the_released_ones() -> None:
    """Rates, drops and losses of the configurations mevis_swint, mevis_swinb and ytvos."""
    mevis, youtube = (read_toml(PAGES / f"referdino_{name}.toml") for name in ("mevis", "single_object"))
    assert (mevis["optim"]["lr"], youtube["optim"]["lr"]) == (1e-4, 5e-5)
    assert {**youtube, "optim": {**youtube["optim"], "lr": 1e-4}, "config": {}} == {**mevis, "config": {}}
    swin_b = merge(mevis, parse_overrides(ROWS["table_2.referdino_b"]["set"]))
    for page, costs in ((mevis, (2, 1, 1, 5, 5)), (swin_b, (1, 3, 3, 5, 4)), (youtube, (4, 5, 2, 5, 5))):
        losses = build(ReferDinoConfig, page.get("config", {}), "page").losses()
        assert tuple(losses.costs.values()) == costs and tuple(losses.weights.values()) == costs[:3]


def test_rows_of_another_benchmark_or_without_weights_are_one_line() -> None:
    imported = Models(None, Path("run"), {}, 1)
    for row, benchmark, models, reason in (
        ("table_9", "mevis", LIVE, r"no row 'table_9' of mevis; there are: table_2.grounded_sam2_t, "),
        ("table_5.drop_50", "mevis", LIVE, "no row 'table_5.drop_50' of mevis"),
        (
            "table_2.referdino_t",
            "mevis",
            replace(LIVE, way="baseline"),
            "not reached by --way baseline, but by --way tune, --way cached; rows by --way baseline: table_2.grounded_sam2_t, ",
        ),
        ("table_4.condinst", "mevis", replace(LIVE, way="cached"), "not reached by --way cached, but by --way tune"),
        ("table_2.referdino_t_cached", "mevis", replace(LIVE, way="tune"), "is the row .* by --way cached; leave --way tune out"),
        ("table_2.referdino_b_tune", "mevis", imported, "by --way tune; leave --imported out"),
        (
            "table_2.referdino_t",
            "mevis",
            replace(LIVE, way="cached", tuning=("lr=1",)),
            "--tune-set lr=1: .* tunes nothing; leave it out; or give --way tune",
        ),
        ("table_2.referdino_t", "mevis", replace(LIVE, tracker={"checkpoint": "x"}), "checkpoint=x: give --upstream x$"),
        ("table_2.referdino_t", "mevis", replace(LIVE, tuning=("checkpoint=x",)), "--tune-set checkpoint=x: give --upstream x$"),
        ("table_2.referdino_t", "mevis", replace(LIVE, tracker={"masks": "none"}), "masks=none: the page scores masks"),
        (
            "table_2.grounded_sam2_t",
            "mevis",
            replace(LIVE, tracker={"grounding_checkpoint": "x"}),
            "grounding_checkpoint=x: give --upstream x$",
        ),
        ("table_2.referdino_t", "mevis", imported, "no weights of the row 'table_2.referdino_t' were released"),
    ):
        with pytest.raises(InputError, match=reason) as fault:
            published_row(row, benchmark, models)
        assert "\n" not in str(fault.value) and "mttr" not in str(fault.value)
    assert published_row("table_2.referdino_b", "mevis", imported)["scores"] == [49.3, 44.7, 53.9]
    assert published_scores("mevis", []) == "the paper: mevis/valid has no published number of this way"


@pytest.mark.parametrize(
    ("row", "way", "name", "numbers"),
    [
        ("table_2.referdino_t", "tune", "table_2.referdino_t", [48.0, 43.6, 52.3]),
        ("referdino.table_2.referdino_t", "tune", "table_2.referdino_t", [48.0, 43.6, 52.3]),
        ("table_2.referdino_t_cached", "cached", "table_2.referdino_t_cached", []),
        ("table_2.referdino_b", "tune", "table_2.referdino_b_tune", [49.3, 44.7, 53.9]),
        ("table_2.grounded_sam2_t", "baseline", "table_2.grounded_sam2_t", [37.4, 31.0, 43.7]),
        ("figure_7.alpha_1", "cached", "figure_7.alpha_1", []),
    ],
)
def test_a_row_s_way_its_folder_and_its_number(row: str, way: str, name: str, numbers: list[float]) -> None:
    """The way is by default that of the published number; each way has a folder, named as the row on the board."""
    published = published_row(row, "mevis", LIVE)
    assert (published["way"], published["name"], published["scores"]) == (way, name, numbers)
    assert f"referdino.{name}" in {whole for whole, _ in read_paper(PAPER).rows()}
    assert f"row {name}, by --way {way}: " in way_line(published)
    if way == "tune" and row.endswith("_t"):
        asked = published_row(row, "mevis", replace(LIVE, way="cached"))
        assert asked["name"] == f"{name}_cached" and asked["scores"] == []


def test_rows_share_the_caches_of_an_upstream_and_its_settings(tmp_path: Path) -> None:
    folders = {row: LIVE.name(values) for row, values in ROWS.items() if "cached" in values.get("reach", ())}
    assert len(set(folders.values())) == 5
    baselines = {LIVE.name(values) for row, values in ROWS.items() if "grounded_sam2" in row}
    assert baselines == {f"sam2-box-grounding-dino-{size}-prompt_every_100000" for size in ("tiny", "base")}
    assert folders["table_3.without_tracker"] == folders["table_2.referdino_t"] == "grounding-dino-tiny"
    assert folders["table_5.random_50"] == "grounding-dino-tiny-prune_score_random"
    (tmp_path / "upstream").mkdir()
    for record, more in (({}, {}), ({"settings": {"keep_ratio": 0.8, "frames": 1}}, {"keep_ratio": 0.8, "resizing": "image"})):
        (tmp_path / "upstream/referdino.json").write_text(json.dumps({"source": "a", **record}))
        extraction = Models(None, tmp_path, {"short_side": 64}, 2).extraction(ROWS["table_2.referdino_b"])
        own = {"checkpoint": str(tmp_path / "upstream"), "masks": "head", "short_side": 64}
        assert extraction["overrides"] == {**own, **more} and extraction["tracker"] == "gdino-queries"


def test_a_wrong_checkpoint_names_the_page_s_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "valid_u"):
        write_split(tmp_path / "data" / split, {split: (3, True, EXPRESSIONS)})
    words = ("--root", tmp_path / "data", "--out", tmp_path / "out", "--upstream", tmp_path / "gone")
    for way in ("cached", "tune"):
        with pytest.raises(InputError, match="GroundingDINO checkpoint .* --upstream FOLDER") as fault:
            called(monkeypatch, referdino_mevis.referdino_mevis, *words, "--way", way)
        assert " --set " not in str(fault.value)


def test_a_missing_dataset_names_the_page_s_option_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on pages of other systems."""
    youtube, (_, a2d, *_) = write_youtube(tmp_path / "yt"), write_images(tmp_path)
    gone, single, out = tmp_path / "gone", referdino_single_object.referdino_single_object, ("--out", tmp_path / "out")
    for page, words, option in (
        (referdino_mevis.referdino_mevis, ("--root", gone), "--root"),
        (single, ("--youtube", gone, "--davis", gone), "--youtube"),
        (single, ("--youtube", youtube, "--davis", gone), "--davis"),
        (referdino_images.referdino_images, ("--a2d", a2d, "--jhmdb", gone), "--jhmdb"),
        (dmvs_mevis.dmvs_mevis, ("--vita", tmp_path, "--root", gone), "--root"),
        (dmvs_single_object.dmvs_single_object, ("--vita", tmp_path, "--youtube", youtube, "--images", gone), "--images"),
        (sola_zero_shot.sola_zero_shot, ("--youtube", youtube, "--davis", gone), "--davis"),
    ):
        with pytest.raises(InputError, match=f"^{gone}: no such folder; give another {option} \\(pipelines/README.md") as fault:
            called(monkeypatch, page, *words, *out)
        assert "--split" not in str(fault.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="splits of .*: none; give another --root \\(pipelines"):
        called(monkeypatch, referdino_mevis.referdino_mevis, "--root", tmp_path / "empty", *out)
    assert not (tmp_path / "out").exists()


SMALL = {"epochs": 1, "batch_size": 2, "clip.frames": 3, "config.hidden": 16, "config.temporal_layers": 1}


def test_from_frames_to_scores_and_zip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, upstream = tmp_path / "data", tiny_grounding_dino(tmp_path / "tiny")
    for split, videos in (("train", ("t0",)), ("valid_u", ("u0",)), ("valid", ("v0",))):
        write_split(root / split, dict.fromkeys(videos, (4, True, EXPRESSIONS)))
    hide(root / "valid")
    page, out = referdino_mevis.referdino_mevis, tmp_path / "out"
    words = ("--root", root, "--out", out, "--upstream", upstream, *TRACKER, *words_of(SMALL))
    called(monkeypatch, page, *words, "--way", "cached")
    row = out / "table_2.referdino_t_cached"
    printed = capsys.readouterr().out
    assert "row table_2.referdino_t_cached, by --way cached: stage two alone" in printed and "tracks' oracle, valid_u" in printed
    assert "the paper: mevis/valid has no published number of this way" in printed and "48.0" not in printed
    page_text = (row / "report/index.html").read_text("utf-8")
    assert "table_2.referdino_t_cached, valid_u, threshold 0.2, else the best candidate" in page_text
    assert "the paper," not in page_text and "words of hashed" not in page_text
    record = json.loads((row / "run/settings.json").read_text())
    assert record["resolved"]["config"]["token_channels"] == 64 and record["resolved"]["config"]["tracker"] == "cached"
    assert len(json.loads((row / "metrics.json").read_text())["expressions"]) == len(EXPRESSIONS)
    assert read_card(out / "cache/tiny/valid/gdino-queries.zarr").settings["masks"] == "box"
    names = zipfile.ZipFile(row / "mevis_valid.zip").namelist()
    assert len([name for name in names if name.endswith(".png")]) == 4 * len(EXPRESSIONS)
    # What training would refuse is refused before another upstream's tracks are extracted.
    other = tiny_grounding_dino(tmp_path / "other", seed=1)
    for change, reason in (
        (
            ("--upstream", other),
            f"run: was started with tracks caches of checkpoint = '{upstream}', now it is '{other}'",
        ),
        (("--tracker-set", "short_side=64"), "run: was started with tracks caches of short_side = 32, now it is 64"),
        (("--set", "optim.lr=1"), "run: was started with optim.lr = 0.0001, now it is 1.0"),
    ):
        with pytest.raises(InputError, match=f"{reason}; give the same, or another --out"):
            called(monkeypatch, page, *words, "--way", "cached", *change)
    assert [path.name for path in (out / "cache").iterdir()] == ["tiny"]
    # A row without a run meets the caches of another one.
    change = (
        "--row",
        "figure_7.alpha_0",
        "--tracker-set",
        "masks=sam2",
        "--tracker-set",
        f"sam2_checkpoint={shared_checkpoint()}",
    )
    with pytest.raises(InputError, match="made with masks = 'box', now it is 'sam2'; give the old settings, or another --out"):
        called(monkeypatch, page, *words, "--way", "cached", *change)
    written = (row / "run/last/model.safetensors").stat().st_mtime_ns
    called(monkeypatch, page, *words, "--row", "table_2.referdino_t_cached")
    assert (row / "run/last/model.safetensors").stat().st_mtime_ns == written
    # Another alignment reads the same caches.
    called(monkeypatch, page, *words, "--row", "figure_7.alpha_1")
    assert "the paper: mevis/valid has no published number" in capsys.readouterr().out
    selections = SelectionCache(out / "figure_7.alpha_1/selections/valid_u.zarr").selections("u0")
    assert all(selection.parts is not None for selection in selections)


TUNING = {"frames": 3, "augment": "none", "short_side": 64, "accumulate": 1, "keep_ratio": 0.4, "anchor_every": 16}


@pytest.mark.slow
def test_a_row_that_is_tuned_further_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An upstream of more steps has caches, selections and masks of its own; metrics and zip are those of the last."""
    root, out, upstream = tmp_path / "data", tmp_path / "out", tiny_grounding_dino(tmp_path / "tiny")
    for split in ("train", "valid_u", "valid"):
        write_split(root / split, {split: (4, True, EXPRESSIONS)})
    hide(root / "valid")
    words = ("--root", root, "--out", out, "--upstream", upstream, "--tracker-set", "short_side=32")
    zips = []
    for steps in (1, 2, 2):
        sets = [word for name, value in {**TUNING, "steps": steps}.items() for word in ("--tune-set", f"{name}={value}")]
        called(monkeypatch, referdino_mevis.referdino_mevis, *words, *sets)
        zips.append((out / "table_2.referdino_t/mevis_valid.zip").read_bytes())
    caches = sorted(path.name for path in (out / "cache").iterdir())
    assert len(caches) == 2 and all(re.fullmatch(r"tuned-table_2.referdino_t-[0-9a-f]{8}", name) for name in caches)
    kept = {path.name for path in (out / "table_2.referdino_t").iterdir()}
    assert {f"{kind}-{name[-8:]}" for kind in ("selections", "masks") for name in caches} <= kept


@pytest.mark.slow
def test_released_weights_predict_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "out"
    for split in ("train", "valid_u"):
        write_split(root / split, {split: (3, True, EXPRESSIONS)})
    import_referdino(shared_released(), str(shared_grounding()), run)
    words = ("--root", root, "--out", out, "--imported", run, "--tracker-set", "short_side=32", "--tracker-set", "keep_ratio=0.4")
    with pytest.warns(UserWarning, match=r"tracks with settings.keep_ratio = 0.4"):
        called(monkeypatch, referdino_mevis.referdino_mevis, *words)
    assert "the paper: mevis/valid J&F 49.3, J 44.7, F 53.9" in capsys.readouterr().out
    # Nothing is extracted to train on.
    assert [folder.name for folder in (out / "cache/run").iterdir()] == ["valid_u"]
    assert read_card(out / "cache/run/valid_u/gdino-queries.zarr").settings["masks"] == "head"
    row = out / "table_2.referdino_b"
    assert "<td>the paper, mevis/valid</td><td>49.3</td><td>44.7</td><td>53.9</td>" in (row / "report/index.html").read_text(
        "utf-8"
    )
    assert not (row / "run").exists() and len(json.loads((row / "metrics.json").read_text())["expressions"]) == len(EXPRESSIONS)


OPEN = (
    ("ref-youtube-vos", "held_out", "Annotations/hidden/0/00000.png"),
    ("ref-davis17", "valid", "anno_0/d0/00000.png"),
)


@pytest.mark.slow
def test_one_object_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page, out = referdino_single_object.referdino_single_object, tmp_path / "out"
    youtube = ("--youtube", write_youtube(tmp_path / "yt"), "--out", out)
    words = (*youtube, "--upstream", tiny_grounding_dino(tmp_path / "tiny"), "--way", "cached", *TRACKER, *words_of(SMALL))
    # Table 5 is of Ref-YouTube-VOS alone.
    called(monkeypatch, page, *words, "--davis", tmp_path / "gone", "--row", "table_5.drop_65")
    printed = capsys.readouterr().out
    assert "the paper: ref-youtube-vos/valid has no published number" in printed and "ref-davis17" not in printed
    assert "oracle, ref-youtube-vos held_out" in printed
    card = read_card(out / "cache/tiny-keep_ratio_0.35/ref-youtube-vos/held_out/gdino-queries.zarr")
    assert card.settings["keep_ratio"] == 0.35
    called(monkeypatch, page, *words, "--davis", write_davis(tmp_path / "dv"))
    assert "the paper: ref-davis17/valid has no published number" in capsys.readouterr().out
    for row, tested in (("table_5.drop_65_cached", OPEN[:1]), ("table_1.referdino_t_cached", OPEN)):
        folder = out / row
        assert set(json.loads((folder / "run/settings.json").read_text())["sets"]) == {"ref-youtube-vos/fit"}
        assert sorted(path.stem for path in (folder / "metrics").iterdir()) == sorted(name for name, _, _ in tested)
        for name, split, first in tested:
            assert f"{name} {split}: " in (folder / f"report/{name}/index.html").read_text("utf-8")
            assert resolve_policy(SelectionCache(folder / f"selections/{name}-{split}.zarr")).top1
            with zipfile.ZipFile(folder / f"{name}_valid.zip") as archive:
                assert archive.namelist()[0] == first
