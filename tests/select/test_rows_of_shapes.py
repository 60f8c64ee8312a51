"""A row of each shape of table, from its datasets to its record or zip, by the board's command on tiny random checkpoints."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_sam2
from click.testing import CliRunner
from tiny_rows import TRAINING, TUNING, options, write_datasets, write_weights

from pipelines.__main__ import pipelines
from pipelines.rows.needs import trained_splits
from pipelines.rows.papers import all_papers, find_row
from pipelines.rows.steps import is_scored_by_server
from rvos_cache.store import SelectionCache, read_card
from rvos_select.merging.policy import resolve_policy

OPTIONS: dict[str, list[str]] = {}
"""Of the folder of this file's tests."""


@pytest.fixture(autouse=True, scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All rows share a folder, so caches and runs that they have in common are made once."""
    folder = tmp_path_factory.mktemp("rows")
    data = write_datasets(folder / "data")
    words = ["--out", str(folder / "out")]
    for path in sorted(data.iterdir()):
        names = ("refcoco", "refcoco+", "refcocog") if path.name == "refcoco" else (path.name,)
        words += [word for name in names if path.name != "single" for word in ("--root", f"{name}={path}")]
    for name, place in write_weights(folder / "weights").items():
        words += ["--weights", f"{name}={place}"]
    OPTIONS["all"] = words
    with tiny_sam2.without_gpu():
        yield folder


def call(*words: object) -> str:
    result = CliRunner().invoke(pipelines, [*map(str, words), *OPTIONS["all"]], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def run(row: str, *more: str, **settings: Any) -> list[str]:
    """Run a row with small settings, and check its record and the board. Returns its commands."""
    paper, _, content = find_row(row, all_papers())
    used = [name for _, names in trained_splits(paper, content) for name in names]
    small = {"train": TRAINING[paper.name], "tune": TUNING}.get(content.way, {})
    words = [*options(row, {**small, **settings}, list(dict.fromkeys([*used, *content.test]))), *more]
    printed = call("run", row, *words)
    folder = Path(OPTIONS["all"][1]) / row
    record = json.loads((folder / "record.json").read_text())
    open_splits = [split for split in content.paper if not is_scored_by_server(split)]
    assert [score["split"] for score in record["scores"]] == open_splits
    assert all(0 <= value <= 100 for score in record["scores"] for value in score["values"].values())
    hidden = [split for split in content.paper if is_scored_by_server(split)]
    assert [zipped["split"] for zipped in record["packed"]] == hidden
    for zipped in record["packed"]:
        with zipfile.ZipFile(zipped["source"]) as archive:
            assert archive.namelist()
        assert f"send {zipped['source']} to https://" in printed
    # Of the row's own entries, each is scored or to be sent, and nothing is left to pay for.
    given = [word for pair in zip(words[::2], words[1::2]) if pair[0] == "--tracker-set" or "--set" in pair for word in pair]
    entries = [entry for entry in json.loads(call("--json", "--system", paper.name, *given)) if entry["row"] == row]
    assert {entry["state"].split(":")[0] for entry in entries} <= {"scored", "to be sent"}
    assert {entry["hours"] for entry in entries} == {0}
    return next(iter([*record["scores"], *record["packed"]]))["commands"]


def of_verb(commands: list[str], verb: str) -> list[str]:
    """The commands `rvos-select VERB` or `rvos-cache VERB`."""
    return [command for command in commands if command.split()[1] == verb]


def settings_of(commands: list[str]) -> dict[str, Any]:
    """What the last run of a row was trained with."""
    line = of_verb(commands, "train")[-1].split()
    content: dict[str, Any] = json.loads((Path(line[line.index("--out") + 1]) / "settings.json").read_text())
    return content


def caches_of(commands: list[str], verb: str) -> list[str]:
    """Split and tracker of each tracks cache that a command reads."""
    line = of_verb(commands, verb)[0].split()
    paths = [Path(word) for option, word in zip(line, line[1:]) if option == "--cache"]
    return [f"{path.parts[-3]}/{path.parts[-2]} {read_card(path).producer}" for path in paths]


@pytest.mark.slow
def test_zero_shot() -> None:
    commands = run("sola.table_2.sola")
    assert set(settings_of(commands)["sets"]) == {"mevis/train"}
    assert len(of_verb(commands, "extract")) == 2 + 2 + 2 + 2 and not of_verb(commands, "oracle")


@pytest.mark.slow
def test_joint_training() -> None:
    commands = run("sola.table_3.sola")
    assert set(settings_of(commands)["sets"]) == {"mevis/train", "ref-youtube-vos/fit"}
    assert len(of_verb(commands, "oracle")) == 1


@pytest.mark.slow
def test_without_training_and_with_corrupted_frames() -> None:
    commands = run("sola.table_4.without_module")
    assert not of_verb(commands, "train") and caches_of(commands, "predict") == ["mevis/valid sam2-box"]
    blurred = run("sola.table_a1.motion_blur")
    corrupted = [command for command in blurred if "--corrupt motion_blur:5" in command]
    assert len(corrupted) == 2 and all("--split valid " in command for command in corrupted)
    # The run is that of the clean frames.
    clean = run("sola.table_1.val")
    train = [of_verb(own, "train")[0].removesuffix(" --resume") for own in (blurred, clean)]
    assert train[0] == train[1]


@pytest.mark.slow
def test_background_tokens_and_kinds_of_attention() -> None:
    commands = run("sola.table_a2a.none")
    assert caches_of(commands, "train") == ["mevis/train sam2-gt"] and caches_of(commands, "predict") == ["mevis/valid sam2-box"]
    assert settings_of(run("sola.table_5b.objects"))["settings"]["config"]["attention"] == "objects"


@pytest.mark.slow
def test_one_object_each() -> None:
    commands = run("dmvs.table_2.dmvs")
    names = {"ref-youtube-vos/fit", *(f"{name}/train-pseudo10" for name in ("refcoco", "refcoco+", "refcocog"))}
    assert set(settings_of(commands)["sets"]) == names
    (best,) = (Path(OPTIONS["all"][1]) / "dmvs.table_2.dmvs").glob("*/ref-davis17-valid/selections.zarr")
    assert resolve_policy(SelectionCache(best)).top1


@pytest.mark.slow
def test_another_upstream() -> None:
    commands = run("dmvs.table_7.youtube_vis_2019")
    assert caches_of(commands, "train") == ["mevis/train vita"]
    assert all("youtube_vis_2019" in command for command in of_verb(commands, "extract"))


@pytest.mark.slow
def test_images_first() -> None:
    commands = run("ssa.table_3.ssa", "--set", "init=")
    first, _ = of_verb(commands, "train")
    assert "ssa_images.toml" in first and "/refcoco/train/" in first
    # The second starts from the first, though --set init= is given: it is of the first alone.
    run_of_first = first.split("--out ")[1].split()[0]
    assert settings_of(commands)["settings"]["init"] == run_of_first


@pytest.mark.slow
def test_joint_training_of_ssa() -> None:
    commands = run("ssa.table_1.joint_val", "--set", "init=")
    assert settings_of(commands)["settings"]["weights"] == {"ref-youtube-vos": 1.071}


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        "referdino.table_2.referdino_b_tune", "referdino.table_4.dot_product", "referdino.table_2.referdino_t_cached",
        "referdino.figure_7.alpha_1", "referdino.table_2.grounded_sam2_t", "referdino.table_1.referdino_b",
        "referdino.table_1.grounded_sam2_b_images", "referdino.table_1.referdino_b_images",
    ],
)  # fmt: skip
def test_ways_of_referdino(row: str) -> None:
    commands = run(row)
    way = find_row(row, all_papers())[2].way
    verbs = {command.split()[1] for command in commands}
    assert ("tune-referdino" in verbs, "import-referdino" in verbs, "train" in verbs) == (
        way == "tune",
        way in ("tune", "import"),
        way == "train",
    )


@pytest.mark.slow
def test_images_of_stage_two() -> None:
    commands = run("referdino.table_1.referdino_t_images_cached", hold_out=0)
    assert len(of_verb(commands, "evaluate")) == 2
    assert all("resizing=image" in command for command in of_verb(commands, "extract"))


@pytest.mark.slow
def test_other_trackers_and_words_of_dervos() -> None:
    run("dervos.table_3.vita")
    run("dervos.table_3.mask2former")
    commands = run("dervos.table_4.bert")
    assert caches_of(commands, "train") == ["mevis/train dvis"]
    run("dervos.table_2.dervos")
