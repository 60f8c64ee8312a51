"""What rows are given and what they keep: options that name nothing, names of caches and runs, records, costs, and what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from odd_videos import EXPRESSIONS, write_split

from pipelines.__main__ import pipelines, show_record, verdict
from pipelines.rows import results
from pipelines.rows.board import entries, show
from pipelines.rows.costs import cost_of
from pipelines.rows.needs import Places, needs_of
from pipelines.rows.papers import TrackerChoice, all_papers, find_row
from pipelines.rows.published import keys_of, titles_of
from pipelines.rows.rates import Rates
from pipelines.rows.results import Output, Score, add_scores, definition_of, read_record, read_server
from pipelines.rows.runner import naming_weights
from pipelines.rows.steps import steps_of
from rvos_cache.errors import InputError
from rvos_select.metrics.image_iou import MeanIou, OverallIou

ROW, HIDDEN = "sola.table_1.val_u", "sola.table_1.val"


def call(*words: object) -> str:
    result = CliRunner().invoke(pipelines, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((ROW, "--weights", "sam3=x"), "--weights sam3: no weights of that name in "),
        ((ROW, "--root", "mevs=x"), "--root mevs: no dataset of that name in "),
        (
            ("referdino.table_2.referdino_t_cached", "--tracker-set", "gdino_queries.short_side=80"),
            "no tracker of that name in row referdino.table_2.referdino_t_cached; there are: queries_frozen",
        ),
        (
            ("referdino.table_2.referdino_t_cached", "--tracker-set", "short_side=80"),
            "as in --tracker-set grid.batch=8; trackers of row referdino.table_2.referdino_t_cached: queries_frozen",
        ),
        (
            (ROW, "--tracker-set", "vita.batch=8"),
            f"--tracker-set vita: no tracker of that name in row {ROW}; there are: gt, grid, ",
        ),
        (
            ("referdino.table_2.referdino_t_cached", "--tracker-set", "queries_frozen.masks=none"),
            "masks=none has no masks to score",
        ),
        ((ROW, "--tracker-set", "grid.nothing=1"), "no setting 'nothing'; there are: checkpoint, "),
        ((ROW, "--set", "nothing=1"), f"row {ROW}: no setting 'nothing'; there are: "),
        ((ROW, "--set", "config.nothing=1"), "config: no setting 'nothing'; there are: "),
        (
            ("referdino.table_2.referdino_b", "--set", "epochs=1"),
            "row referdino.table_2.referdino_b trains nothing; leave it out",
        ),
        (("referdino.table_2.referdino_b", "--seeds", 2), "--seeds 2: row referdino.table_2.referdino_b trains nothing"),
        (("sola.table_4.without_module", "--seeds", 2), "--seeds 2: row sola.table_4.without_module trains nothing"),
        (("referdino.table_4.full", "--set", "nothing=1"), "no setting 'nothing'"),
        (("sola.table_1.lmpm",), "row sola.table_1.lmpm cannot be run here: another system"),
    ],
)
def test_options_that_name_nothing_end_before_anything_runs(words: tuple[object, ...], message: str, tmp_path: Path) -> None:
    for more in ((), ("--dry-run",)):
        with pytest.raises(InputError, match=re.escape(message)) as error:
            call("run", *words, *more, "--out", tmp_path / "out")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="--tracker-set nobody: no tracker of that name in papers/; there are: "):
        call("--tracker-set", "nobody.batch=8")


def test_what_is_missing_is_named_with_its_place_and_option(tmp_path: Path) -> None:
    write_split(tmp_path / "train", {"t0": (2, True, EXPRESSIONS)})
    with pytest.raises(InputError, match=r"needs mevis/valid_u, expected at .*; get it: https.*; or give --root mevis=FOLDER"):
        call("run", ROW, "--root", f"mevis={tmp_path}")
    write_split(tmp_path / "valid_u", {"u0": (2, True, EXPRESSIONS)})
    with pytest.raises(
        InputError,
        match=r"needs sam2, expected at /nowhere/x; get it: https://huggingface.co/facebook.* or give --weights sam2=PLACE",
    ):
        call("run", ROW, "--root", f"mevis={tmp_path}", "--weights", "sam2=/nowhere/x")
    with pytest.raises(InputError, match=r"missing too: refcoco, refcoco\+, refcocog, "):
        call("run", "dmvs.table_2.dmvs")


def test_weights_that_are_not_there_are_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in --dry-run; a name on the hub, which may look like a path, is allowed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    row = "referdino.table_2.referdino_t"
    for place in ("weights/nope", "./nope", "/nowhere/x"):
        reason = f"needs grounding_dino_t, expected at {place}; get it: https://huggingface.co/IDEA-Research/grounding-dino-tiny,"
        with pytest.raises(InputError, match=reason):
            call("run", row, "--dry-run", "--weights", f"grounding_dino_t={place}")
    for place in ("owner/nope", "nope"):
        assert f"checkpoint={place}" in call("run", row, "--dry-run", "--weights", f"grounding_dino_t={place}")
    # Of another row.
    assert call("run", row, "--dry-run", "--weights", "sam2=/nowhere/x")


def test_parts_and_pseudo_videos_need_the_split_that_they_are_made_of(tmp_path: Path) -> None:
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/instances_refcoco_train.json").write_text("{}")
    paper, _, row = find_row("dmvs.table_2.dmvs", all_papers())
    needs = {need.name: need.present for need in needs_of(paper, row, Places(roots={"refcoco": tmp_path}))}
    assert needs["refcoco"] is True and needs["refcoco+"] is False
    assert {str(Places().root(name)) for name in ("refcoco", "refcoco+", "refcocog")} == {str(Path("data/refcoco"))}


def test_a_checkpoint_that_cannot_be_loaded_is_given_by_the_board_s_option() -> None:
    paper, _, row = find_row("referdino.table_2.referdino_t_cached", all_papers())
    places = Places(weights={"grounding_dino_t": "nobody/tiny", "sam2": "nobody/sam2"})
    for where, name in (("nobody/tiny", "grounding_dino_t"), ("nobody/sam2", "sam2")):
        with pytest.raises(InputError, match=f"a folder: --weights {name}=FOLDER$"), naming_weights(paper, row, places):
            raise InputError(f"checkpoint '{where}' cannot be loaded; give a folder: --set checkpoint=FOLDER")
    with pytest.raises(InputError, match="^checkpoint 'x': --set checkpoint=FOLDER$"), naming_weights(paper, row, places):
        raise InputError("checkpoint 'x': --set checkpoint=FOLDER")


def test_a_setting_of_the_user_s_replaces_what_a_row_needs() -> None:
    paper, _, row = find_row("ssa.table_1.val_u", all_papers())
    assert "ssa_coco" in {need.name for need in needs_of(paper, row, Places())}
    assert "ssa_coco" not in {need.name for need in needs_of(paper, row, Places(overrides=("init=",)))}


def test_caches_of_other_settings_have_other_names() -> None:
    pairs = ["x=1", "x=-1", "x=1e-3", "x=a/b", "x=a_b", f"x={'long' * 60}", f"x={'long' * 61}", "x={sam2}", "x={sam2}/upstream"]
    keys = [TrackerChoice(tracker="flow", set=(pair,)).key for pair in pairs]
    assert len(set(keys)) == len(keys) and max(map(len, keys)) < 200
    assert TrackerChoice(tracker="flow", set=("a=1", "b=2")).key != TrackerChoice(tracker="flow", set=("a=1_b=2",)).key


def run_of(name: str, places: Places, seed: int = 0) -> Path:
    paper, _, row = find_row(name, all_papers())
    return [step.output for step in steps_of(paper, name, row, places, seed) if step.makes == "run"][-1]


def test_runs_are_shared_by_what_determines_them(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run_of(HIDDEN, Places())
    assert (
        plain == run_of(ROW, Places()) == run_of("sola.table_2.sola", Places()) == run_of("sola.table_a1.motion_blur", Places())
    )
    # Weights that it does not read, and settings of memory alone.
    assert plain == run_of(ROW, Places(weights={"vita": "x"})) == run_of(ROW, Places(overrides=("micro_batch=2",)))
    others = [
        run_of(ROW, Places(weights={"sam2": "x"})), run_of(ROW, Places(overrides=("epochs=13",))), run_of(ROW, Places(), 1),
        run_of(ROW, Places(tracker_set={"grid": ("batch=2",)})), run_of("sola.table_5b.objects", Places()),
    ]  # fmt: skip
    assert len({plain, *others}) == 1 + len(others)
    # A settings file that was edited.
    from pipelines.rows import steps

    read = steps.read_toml
    monkeypatch.setattr(steps, "read_toml", lambda path: {**read(path), "epochs": 99})
    assert run_of(ROW, Places()) != plain


def test_live_tuning_has_the_user_s_settings_and_seed() -> None:
    paper, name, row = find_row("referdino.table_4.full", all_papers())
    tune = steps_of(paper, name, row, Places(overrides=("accumulate=16",)), 2)[0]
    assert tune.words[0] == "tune-referdino" and {"accumulate=16", "seed=2"} <= set(tune.words)
    assert run_of(name, Places(), 2) != run_of(name, Places(), 1)


def test_a_tuned_upstream_is_run_with_the_settings_that_it_is_tuned_with() -> None:
    def extracted(name: str, *overrides: str, own: tuple[str, ...] = ()) -> list[str]:
        paper, _, row = find_row(name, all_papers())
        places = Places(overrides=overrides, tracker_set={"queries": own} if own else {})
        return [step.line() for step in steps_of(paper, name, row, places) if step.tracker is not None]

    row = "referdino.table_2.referdino_t"
    assert not any("short_side" in line or "keep_ratio" in line for line in extracted(row, "short_side=80"))
    for line in extracted(row, "augment=none", "short_side=80", "keep_ratio=0.25", "frames=1"):
        assert {"short_side=80", "keep_ratio=0.25", "resizing=image"} <= set(line.split())
    # What the user asks of the tracker comes last, and of a row's own tuning no setting is needed twice.
    assert all("short_side=96" in line for line in extracted(row, "augment=none", "short_side=80", own=("short_side=96",)))
    assert all(line.count("keep_ratio=0.8") == 1 for line in extracted("referdino.table_5.drop_20"))
    assert all("tracker=none" in line for line in extracted("referdino.table_3.without_tracker"))
    # The board lists a row also where --set is for others.
    assert all(" tracker=" not in line for line in extracted(row, "nothing=1"))


def test_costs_of_what_is_not_known_and_of_what_is_there(tmp_path: Path) -> None:
    papers = all_papers()
    for name, hours in (("ssa.table_3.ssa", None), ("referdino.table_4.full", None), (ROW, 7.1)):
        paper, _, row = find_row(name, papers)
        assert cost_of(paper, name, row, Places(), Rates(device="")).hours == (
            None if hours is None else pytest.approx(hours, abs=0.1)
        )
    # The caches of a row that names its own run.
    name, places = "referdino.table_2.referdino_b", Places(out=tmp_path)
    paper, _, row = find_row(name, papers)
    assert cost_of(paper, name, row, places, Rates(device="")).gigabytes is None
    for step in steps_of(paper, name, row, places):
        if step.makes == "cache":
            step.output.mkdir(parents=True)
    assert cost_of(paper, name, row, places, Rates(device="")).gigabytes == 0


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        (None, "nothing can be said"),
        ((-0.01, 0.02), "a difference is not shown by these videos"),
        ((0.01, 0.02), "B is better"),
        ((-0.02, -0.01), "A is better"),
    ],
)
def test_a_difference_is_more_than_chance_where_its_interval_leaves_zero_out(
    interval: tuple[float, float] | None, words: str
) -> None:
    assert words in verdict(interval, "J&F", 6)
    few = verdict(interval, "J&F", 5)
    assert "better" not in few and (interval is None or "5 videos are too few" in few)


def score(seed: int, value: float, **more: Any) -> Score:
    given: dict[str, Any] = {
        "split": "mevis/valid_u",
        "source": "s.json",
        "date": "2026-01-01",
        "commit": "",
        "definition": "d",
        **more,
    }
    return Score(seed=seed, values={"jf": value, "j": value, "f": value}, **given)


def test_where_a_row_found_its_dataset_is_told_beside_what_is_missing(tmp_path: Path) -> None:
    command = "rvos-cache extract --dataset mevis --root '/my data/mevis' --split valid_u --tracker flow"
    add_scores(ROW, Places(out=tmp_path), [score(0, 40, commands=(command,))])
    missing = next(line for line in call("--out", tmp_path).splitlines() if line.startswith("missing: mevis"))
    assert missing.endswith("; a row that ran had --root 'mevis=/my data/mevis'")
    without = next(line for line in call("--out", tmp_path / "other").splitlines() if line.startswith("missing: mevis"))
    assert "a row that ran" not in without


def test_the_nearest_rows_are_those_that_can_be_run() -> None:
    papers = all_papers()
    with pytest.raises(InputError, match="nearest: referdino.table_2.referdino_t, ") as fault:
        find_row("referdino.table_2.nope", papers)
    near = str(fault.value).partition("nearest: ")[2].split(", ")
    assert not [name for name in near if find_row(name, papers)[2].reason]
    assert any(row.reason for name, row in papers["referdino"].rows() if name.startswith("referdino.table_2."))


def test_scores_with_other_settings_are_not_averaged(tmp_path: Path) -> None:
    places = Places(out=tmp_path)
    add_scores(ROW, places, [score(0, 40), score(1, 50)])
    assert results.mean_and_deviation(read_record(ROW, places).scores, "jf") == (45, pytest.approx(50**0.5))
    record = add_scores(ROW, places, [score(2, 60, changes=("epochs=1",))])
    assert [(s.seed, s.changes) for s in record.of("mevis/valid_u")] == [(2, ("epochs=1",))]
    record = add_scores(ROW, places, [score(2, 61, changes=("epochs=1",), split="mevis/valid")])
    assert len(record.scores) == 2


def board(places: Places, row: str) -> dict[str, Any]:
    return next(entry for entry in entries({"sola": all_papers()["sola"]}, places) if entry["row"] == row)


def test_a_row_that_was_changed_since_it_was_scored_is_old(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = Places(out=tmp_path)
    paper, _, row = find_row(ROW, all_papers())
    add_scores(ROW, places, [score(0, 40, definition=definition_of(paper, row), changes=("epochs=1",))])
    entry = board(places, ROW)
    assert entry["state"] == "scored"
    show([entry])
    printed = capsys.readouterr().out
    assert "40.0 / 40.0 / 40.0*, 2026-01-01, no commit" in printed and f"* {ROW} mevis/valid_u was run with epochs=1" in printed
    changed = row.model_copy(update={"set": ("config.layers=3",)})
    assert definition_of(paper, changed) != definition_of(paper, row)
    assert definition_of(paper, row.model_copy(update={"note": "another"})) == definition_of(paper, row)
    add_scores(ROW, places, [score(0, 40, definition=definition_of(paper, changed))])
    assert board(places, ROW)["state"].startswith("old: ")
    assert ROW in {entry["row"] for entry in json.loads(call("--todo", "--json", "--out", tmp_path))}


def test_a_server_s_score_is_of_the_zip_that_was_made(tmp_path: Path) -> None:
    places, (paper, _, row) = Places(out=tmp_path / "o"), find_row(HIDDEN, all_papers())
    (tmp_path / "said.txt").write_text("J&F: 48.1\nJ: 44.9\nF: 51.3\n")
    zips = []
    for seed in (0, 1):
        (tmp_path / f"{seed}.zip").write_bytes(b"")
        own = {"definition": definition_of(paper, row), "changes": ("epochs=13",), "date": "2026-01-01", "commit": "abc"}
        zips.append(Output(split="mevis/valid", seed=seed, source=str(tmp_path / f"{seed}.zip"), **own))
    add_scores(HIDDEN, places, [], zips)
    state = board(places, HIDDEN)["state"]
    # With settings that are not the row's.
    assert state.startswith("to be sent: ") and "0.zip*" in state and "1.zip*" in state
    printed = call("score", HIDDEN, tmp_path / "said.txt", "--out", places.out)
    assert "ours: J&F 48.1, J 44.9, F 51.3, with epochs=13" in printed
    # The other seed's zip is still to be sent, and the command says which it is and where the record lies.
    assert f"RESULT.txt --seed 1 --out {places.out}" in printed
    (kept,) = read_record(HIDDEN, places).scores
    assert (kept.commit, kept.changes, kept.date) == ("abc", ("epochs=13",), "2026-01-01")
    call("score", HIDDEN, tmp_path / "said.txt", "--seed", 1, "--out", places.out)
    assert board(places, HIDDEN)["ours"][0] == {"mean": pytest.approx(48.1), "deviation": 0}
    # Another score of the same zip, in fractions: both are told.
    (tmp_path / "again.txt").write_text("J&F: 0.47\nJ: 0.44\nF: 0.50\n")
    with pytest.warns(UserWarning, match=r"no score is above 1, so they are read as fractions: J&F 0.47 is 47.0 %"):
        printed = call("score", HIDDEN, tmp_path / "again.txt", "--seed", 1, "--out", places.out)
    assert f"replaced: J&F 48.1, J 44.9, F 51.3, seed 1, of 2026-01-01, from {tmp_path / 'said.txt'}\n" in printed
    # A zip made anew with other settings: the server's scores were of another one.
    add_scores(HIDDEN, places, [], [zips[0].model_copy(update={"changes": ()})])
    assert board(places, HIDDEN)["state"].startswith("to be sent: ") and read_record(HIDDEN, places).scores == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("J&F: 48.1\nJ: 44.9\nF: 61.3\n", "J&F 48.10 is not the mean of J and F, 53.10"),
        ("J&F: 480\nJ: 44.9\nF: 51.3\n", "a score of 480"),
        ("J&F: 48.1\n", "no number named 'J'"),
    ],
)
def test_a_result_that_no_server_returns_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    _, _, row = find_row(HIDDEN, all_papers())
    (tmp_path / "said.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_server(HIDDEN, row, tmp_path / "said.txt", None, results.Record(row=HIDDEN))
    with pytest.raises(InputError, match="row x cannot be run here, so there is nothing that a server could have scored"):
        read_server(
            "x", row.model_copy(update={"reason": "another system"}), tmp_path / "said.txt", None, results.Record(row="x")
        )


def test_measures_have_one_name_in_the_tables_of_both_programs() -> None:
    fields = [field for metric in (MeanIou, OverallIou) for field in metric.fields]
    named = dict(zip(keys_of("a2d-sentences/test-frames"), titles_of("a2d-sentences/test-frames")))
    assert {field.key: field.title for field in fields} == {key: named[key] for key in ("mean_iou", "overall_iou")}


def test_a_measure_that_is_missing_leaves_the_others_in_their_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "referdino.table_1.grounded_sam2_t_images"
    given = {"split": "a2d-sentences/test-frames", "seed": 0, "source": "s", "date": "2026-01-01", "commit": "c"}
    add_scores(name, Places(out=tmp_path), [Score(values={"overall_iou": 10.0, "mean_iou": 20.0}, **given)])
    places, (paper, _, row) = Places(out=tmp_path), find_row(name, all_papers())
    show_record(read_record(name, places), row.paper, places)
    assert "ours: overall IoU 10.0, mean IoU 20.0" in capsys.readouterr().out
    own = [entry for entry in entries({"referdino": paper}, places) if entry["row"] == name and entry["ours"]]
    show(own)
    printed = capsys.readouterr().out
    assert "mAP 47.5 / 59.0 / 62.5" in printed and "– / 10.0 / 20.0, 2026-01-01, c" in printed
