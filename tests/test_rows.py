"""Rows of the papers: every row resolves, and rows of each shape run end to end on tiny checkpoints, as their commands typed do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_sam2
from click.testing import CliRunner
from test_end_to_end_sam2 import FEW, SENTENCES, SMALL, extract_command, extract_text, keep_expressions, read_meta, set_options
from test_end_to_end_sam2 import run as call_command
from text_fixtures import tiny_roberta

from pipelines.__main__ import pipelines
from pipelines.rows.needs import Places, all_needs, choices_of, named_upstream, needs_of
from pipelines.rows.papers import PAGES, TrackerChoice, all_papers, read_paper
from pipelines.rows.readme import README
from pipelines.rows.steps import RUN, steps_of
from rvos_cache.errors import InputError
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.shapes import write_shapes
from rvos_cache.text import encoder_class
from rvos_cache.trackers import tracker_class
from rvos_cache.trackers.referdino.tune_settings import tune_settings
from rvos_select.selectors import selector_class
from rvos_select.selectors.sola import SolaConfig
from rvos_select.training.settings import TrainSettings


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with tiny_sam2.without_gpu():
        yield


class Work:
    """A dataset in MeViS's layout, tiny checkpoints, and the options that name them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_shapes(folder / "data/mevis", 2, 3)
        for split in ("train", "valid_u"):
            keep_expressions(folder / "data/mevis", split, slice(SENTENCES))
        (folder / "roberta").mkdir()
        videos = read_meta(folder / "data/mevis", "train").values()
        tiny_roberta(folder / "roberta", [e["exp"] for video in videos for e in video["expressions"].values()])
        sam2, grounding = tiny_sam2.shared_checkpoint(), tiny_sam2.shared_grounding()
        weights = {"sam2": sam2, "grounding_dino_t": grounding, "roberta_large": folder / "roberta"}
        trackers = {"grid": FEW["sam2-grid"], "grid_half": FEW["sam2-grid"], "box": FEW["sam2-box"]}
        self.options: list[str] = ["--root", f"mevis={folder / 'data/mevis'}", "--out", str(folder / "out"), *set_options(SMALL)]
        for name, place in weights.items():
            self.options += ["--weights", f"{name}={place}"]
        for name, settings in trackers.items():
            for key, value in settings.items():
                self.options += ["--tracker-set", f"{name}.{key}={value}"]

    def call(self, *words: object) -> str:
        """What `python -m pipelines` prints, with the options of this folder. Raises what it raises."""
        result = CliRunner().invoke(pipelines, [*map(str, words), *self.options], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    def entries(self, *words: object) -> dict[str, dict[str, Any]]:
        """Row and split -> its entry on the board."""
        return {f"{entry['row']} {entry['split']}": entry for entry in json.loads(self.call("--json", *words))}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("rows"))


ROW = "sola.table_1.val_u"


@pytest.fixture(scope="module")
def ran(work: Work) -> str:
    """What running the row printed."""
    return work.call("run", ROW)


def test_a_row_ends_with_our_number_beside_the_papers(work: Work, ran: str) -> None:
    last = ran[ran.rindex(f"{ROW}, mevis/valid_u") :].splitlines()
    assert last[0].endswith("the paper has no number") and last[1].startswith("  ours: J&F ")
    assert last[-1].startswith("  oracle of its candidates: ")
    entry = work.entries("--system", "sola")[f"{ROW} mevis/valid_u"]
    scores = json.loads(next((work.folder / "out" / ROW).glob("*/mevis-valid_u/scores.json")).read_text())
    assert [value["mean"] for value in entry["ours"]] == pytest.approx([100 * scores[key] for key in ("jf", "j", "f")])
    # What is not the row's own is told.
    assert set(entry["changes"]) > {f"{name}={value}" for name, value in SMALL.items()}
    assert entry["state"] == "scored" and entry["hours"] == 0 and entry["oracle"] >= entry["ours"][0]["mean"]


@pytest.mark.slow
def test_the_row_equals_its_commands_typed_one_by_one(work: Work, ran: str) -> None:
    """As in the README: tracks of ground truth and grid to train, of grid and box to test."""
    out, root = work.folder / "typed", work.folder / "data/mevis"
    for split, tracker in (("train", "sam2-gt"), ("train", "sam2-grid"), ("valid_u", "sam2-grid"), ("valid_u", "sam2-box")):
        # Settings with which a video has a few tracks; grid prompts of training and test alike.
        assert call_command(*extract_command(root, split, tracker, out / split / f"{tracker}.zarr"))[0] == 0
        extract_text(root, split, work.folder / "roberta", out / split / "text.zarr")
    train = [word for name in ("sam2-gt", "sam2-grid") for word in ("--cache", out / "train" / f"{name}.zarr")]
    test = [word for name in ("sam2-grid", "sam2-box") for word in ("--cache", out / "valid_u" / f"{name}.zarr")]
    text, valid = ["--text", out / "valid_u/text.zarr"], ["--valid-text", out / "valid_u/text.zarr"]
    valid += ["--valid-cache" if word == "--cache" else word for word in test]
    page = ["--config", PAGES / "sola_mevis.toml", *set_options(SMALL)]
    assert call_command("train", *train, "--text", out / "train/text.zarr", *valid, *page, "--out", out / "run")[0] == 0
    assert call_command("predict", "--run", out / "run", *test, *text, "--out", out / "s.zarr")[0] == 0
    assert call_command("evaluate", "--selections", out / "s.zarr", *test, "--json", out / "scores.json")[0] == 0
    (path,) = (work.folder / "out" / ROW).glob("*/mevis-valid_u/scores.json")
    row, typed = (json.loads(scores.read_text()) for scores in (path, out / "scores.json"))
    assert row == {**typed, "against": row["against"]} if "against" in row else row == typed


def test_what_ran_here_tells_what_other_rows_cost(work: Work, ran: str) -> None:
    """The row of the hidden split needs the same trackers on other videos, and has the same run."""
    rates = json.loads((work.folder / "out/rates.json").read_text())
    assert rates["device"] == "no GPU" and len(rates["trackers"]) == 4 and len(rates["trainings"]) == 1
    entries = work.entries("--system", "sola")
    rate = {key: spent / frames for key, (frames, spent) in rates["trackers"].items()}

    # The tested grid has its own prompts twice among its settings: those of the row, and those of this test.
    def key(name: str, count: int) -> str:
        return next(key for key in rate if name in key and key.count("prompt_every_half") == count)

    frames = all_needs().datasets["mevis"].splits["valid"][1]
    assert entries["sola.table_1.val mevis/valid"]["hours"] == pytest.approx(
        frames * (rate[key("grid", 2)] + rate[key("box", 1)]) / 3600
    )


def test_a_row_that_is_there_is_not_run_again(work: Work, ran: str) -> None:
    run = next((work.folder / "out/runs").iterdir())
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    again = work.call("run", ROW)
    assert before and {path: path.stat().st_mtime_ns for path in before} == before
    assert again[again.rindex(f"{ROW}, mevis") :] == ran[ran.rindex(f"{ROW}, mevis") :]


def test_a_dry_run_prints_commands_and_does_nothing(work: Work, tmp_path: Path) -> None:
    printed = work.call("run", "sola.table_1.val", "--dry-run", "--out", tmp_path / "none").splitlines()
    assert not (tmp_path / "none").exists()
    assert [line.split()[1] for line in printed[-4:]] == ["train", "predict", "merge", "submit"]
    assert sum(" --corrupt " in line for line in printed) == 0


def test_the_board_says_what_is_missing_and_where_to_get_it(work: Work) -> None:
    entries = work.entries()
    assert entries["sola.table_2.sola ref-davis17/valid"]["state"] == "missing: ref-youtube-vos, ref-davis17"
    assert entries["sola.table_1.dshmp mevis/valid"]["state"] == "not here: another system"
    assert all(
        entry["state"] != "ready" or not [n for n in entry["needs"] if n["present"] is False] for entry in entries.values()
    )
    printed = work.call("--system", "sola")
    assert "missing: ref-davis17, at data/ref-davis17; https://davischallenge.org" in printed
    todo = work.entries("--todo")
    assert todo and not [entry for entry in todo.values() if entry["state"].startswith(("scored", "not here"))]


def test_two_rows_are_compared(work: Work, ran: str) -> None:
    printed = work.call("compare", ROW, ROW)
    assert "J&F" in printed and f"{SENTENCES} expressions of 1 video" in printed
    assert f"A: {ROW}, seed 0, 20" in printed and "J&F: one video has no interval" in printed
    with pytest.raises(InputError, match="scored here on no common split; run both rows on one split"):
        work.call("compare", ROW, "sola.table_5a.without_alignment")


@pytest.mark.slow
def test_seeds_give_a_mean_and_a_deviation(work: Work, ran: str) -> None:
    # A setting that the options of `work` lack: they come last, and would replace it.
    printed = work.call("run", ROW, "--seeds", 2, "--set", "label_iou=0.4")
    assert "deviation of J&F over 2 seeds: " in printed
    entry = work.entries("--system", "sola")[f"{ROW} mevis/valid_u"]
    assert entry["seeds"] == [0, 1] and entry["ours"][0]["deviation"] >= 0


def test_what_a_server_said_is_recorded(work: Work, tmp_path: Path) -> None:
    (tmp_path / "scores.txt").write_text("J&F: 0.4712\nJ: 0.4401\nF: 0.5023\n")
    printed = work.call("score", "sola.table_1.val", tmp_path / "scores.txt")
    assert "the paper has J&F 48.6, J 45.2, F 52.1" in printed and "ours: J&F 47.1, J 44.0, F 50.2" in printed
    assert work.entries()["sola.table_1.val mevis/valid"]["state"] == "scored"
    (tmp_path / "other.txt").write_text("accuracy 0.9")
    with pytest.raises(InputError, match="other.txt: no number named 'J&F'"):
        work.call("score", "sola.table_1.val", tmp_path / "other.txt")
    with pytest.raises(InputError, match="0 splits are scored by a server"):
        work.call("score", ROW, tmp_path / "scores.txt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "sola.table_9"), "no row 'sola.table_9'; nearest: sola.table_"),
        (("run", "referdino.table_2.nope"), "no row 'referdino.table_2.nope'; nearest: referdino.table_2."),
        (("run", "table_2.referdino_t"), "no row 'table_2.referdino_t'; nearest: referdino.table_2.referdino_t"),
        (("run", "sola.table_1.dshmp"), "row sola.table_1.dshmp cannot be run here: another system"),
        (("run", "sola.table_2.sola"), "needs ref-youtube-vos, expected at data/ref-youtube-vos; get it: https"),
        (("--system", "solar"), "--system solar: no such system; there are: "),
        (("--root", "mevis"), "--root mevis: expected NAME=VALUE"),
        (("--tracker-set", "batch=8"), "--tracker-set batch=8: expected TRACKER.NAME=VALUE"),
    ],
)
def test_wrong_words_are_one_line(work: Work, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        work.call(*words)
    assert "\n" not in str(error.value)


def test_every_row_resolves_against_the_schemas() -> None:
    """Settings of every row, of its trackers and of its encoder exist, and so do the weights and datasets that it needs."""
    for paper in all_papers().values():
        for name, row in paper.rows():
            if row.reason:
                continue
            for choice in choices_of(paper, row, Places()):
                kind = tracker_class(choice.tracker) if isinstance(choice, TrackerChoice) else encoder_class(choice.encoder)
                build(kind.Settings, parse_overrides(filled(choice.set)), f"{name}, {choice.key}")
            assert needs_of(paper, row, Places())
            if row.way == "train":
                values = merge(read_toml(PAGES / row.settings), parse_overrides(filled(row.set)))
                settings = build(TrainSettings, values, name)
                build(selector_class(settings.selector).Config, settings.config, name)
            if row.way == "tune":
                tune_settings(parse_overrides([Places().filled(named_upstream(pair, row)) for pair in row.tune]))
            assert steps_of(paper, name, row, Places())


def filled(pairs: tuple[str, ...]) -> list[str]:
    return [Places().filled(pair.replace(RUN, "run")) for pair in pairs]


def test_the_readme_has_the_rows(tmp_path: Path) -> None:
    result = CliRunner().invoke(pipelines, ["readme", "--out", str(tmp_path / "README.md")], prog_name="pipelines")
    assert result.exit_code == 0 and (tmp_path / "README.md").read_text("utf-8") == README.read_text("utf-8")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('set = ["config.nothing=1"]', ""),
        ('test = ["nobody"]', "no tracker 'nobody'; there are: flow"),
        ('encoder = "nobody"', "no encoder 'nobody'; there are: hashed"),
        ("nothing = 1", "no setting 'tables.table_1.rows.val.nothing'"),
        ('way = "select"', "a row that is not trained needs `selector`"),
        ("train = {}", "a row that is trained needs `train` and `settings`"),
    ],
)
def test_a_row_that_names_nothing_is_an_error(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "new.toml").write_text(
        'system = "NEW"\ntitle = "t"\nlink = "l"\n[trackers.flow]\ntracker = "flow"\n[encoders.hashed]\nencoder = "hashed"\n'
        '[defaults]\nsettings = "sola_mevis.toml"\nencoder = "hashed"\ntrain = { "mevis/train" = ["flow"] }\ntest = ["flow"]\n'
        f'[table_1]\ntitle = "t"\n[table_1.val]\npaper = {{ "mevis/valid" = [] }}\n{row}\n'
    )
    if not message:
        (_, parsed), *_ = read_paper(tmp_path / "new.toml").rows()
        with pytest.raises(InputError, match="no setting 'nothing'"):
            build(SolaConfig, parse_overrides(parsed.set)["config"], "row")
        return
    with pytest.raises(InputError, match=re.escape(message)):
        read_paper(tmp_path / "new.toml")
