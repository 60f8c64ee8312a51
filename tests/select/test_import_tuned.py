"""A checkpoint of tune-referdino as a run: what its tracker reads, and its selector."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from small_disks import largest_file
from tiny_sam2 import without_gpu
from tiny_tuning import finished, make_settings, shapes

from rvos_cache.cli import cli
from rvos_cache.errors import InputError, warn_once
from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings
from rvos_cache.trackers.referdino.start import load_start
from rvos_cache.trackers.referdino.tracker import GdinoQueries
from rvos_cache.trackers.referdino.upstream import load_head
from rvos_select.cli.train import import_referdino as command
from rvos_select.exchange.import_referdino import import_referdino
from rvos_select.inference.recipe import recipe_of_run
from rvos_select.runs.checkpoint import load_selector, origin_of, run_cards, run_settings, trained_cards


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with without_gpu():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["", "upstream"])
def test_a_tuned_folder_is_a_run(inner: str, tmp_path: Path) -> None:
    imported = import_referdino(finished() / inner, None, tmp_path / "run")
    assert imported.conversion is None
    for path in (finished() / "upstream").iterdir():
        assert (tmp_path / "run" / "upstream" / path.name).read_bytes() == path.read_bytes()
    head = load_head(str(tmp_path / "run" / "upstream"))
    assert head is not None
    selector = load_selector(tmp_path / "run")
    for part in ("enhancer", "box"):
        own = {name.removeprefix(f"{part}."): t for name, t in selector.state_dict().items() if name.startswith(f"{part}.")}
        expected = getattr(head, part).state_dict()
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[name].cpu(), expected[name].cpu()) for name in expected)
    assert imported.trained == sum(p.numel() for part in (head.enhancer, head.box) for p in part.parameters())
    record = json.loads((finished() / "tune.json").read_text())
    assert origin_of(tmp_path / "run") == f"tuned on {record['dataset']} {record['split']} in {record['root']}"
    # The tracker must keep as many queries as the checkpoint was tuned with.
    settings = run_cards(tmp_path / "run")["tracks"].settings
    assert (settings["keep_ratio"], settings["tracker"], settings["masks"]) == (0.4, "memory", "head")
    # Every clip had this size.
    assert record["settings"]["augment"] == "none" and settings["short_side"] == record["settings"]["short_side"] != 360
    assert settings["checkpoint"] == str(tmp_path / "run" / "upstream")


@pytest.mark.slow
def test_a_run_that_was_moved_or_copied_reads_its_own_upstream(tmp_path: Path) -> None:
    import_referdino(finished(), None, tmp_path / "run")
    copied = shutil.copytree(tmp_path / "run", tmp_path / "copied")
    expected = run_cards(tmp_path / "run")["tracks"].weights
    assert recipe_of_run(copied).open_tracker().settings.checkpoint == str(copied / "upstream")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert [card.settings["checkpoint"] for card in trained_cards(moved)] == [str(moved / "upstream")]
    assert recipe_of_run(moved).open_tracker().weight_hashes() == expected
    # Without one of its own, what is recorded.
    (copied / "upstream").rename(tmp_path / "elsewhere")
    assert run_cards(copied)["tracks"].settings["checkpoint"] == str(tmp_path / "run/upstream")
    with pytest.raises(InputError, match=f"^{copied}, tracker gdino-queries: .*put it in a folder of RVOS_CHECKPOINTS$") as fault:
        recipe_of_run(copied).open_tracker()
    assert "--set" not in str(fault.value)


def test_what_is_no_tuned_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no referdino.safetensors"):
        import_referdino(tmp_path / "empty", None, tmp_path / "run")
    with pytest.raises(InputError, match="leave --grounding out"):
        import_referdino(finished(), "x", tmp_path / "run")
    with pytest.raises(InputError, match="give --grounding"):
        import_referdino(tmp_path / "mevis_swinb.pth", None, tmp_path / "run")
    for folder, advice in (
        (finished(), f"first rvos-select import-referdino {finished()} --out RUN"),
        (finished() / "upstream", "give the run of rvos-select import-referdino"),
    ):
        with pytest.raises(InputError, match=advice):
            run_settings(folder)
    imported = shutil.copytree(finished() / "upstream", tmp_path / "imported/upstream")
    (tmp_path / "imported/settings.json").write_text("{}")
    with pytest.raises(InputError, match=f"a checkpoint of stage one; give {imported.parent}$"):
        run_settings(imported)
    with pytest.raises(InputError, match="make room or choose a writable --out, then run the same command again$"):
        import_referdino(finished(), None, "/proc/x")
    full = f"{tmp_path}/run/upstream/.*: cannot be written .File too large.; make room or choose"
    with largest_file(2000), pytest.raises(InputError, match=full):
        import_referdino(finished(), None, tmp_path / "run")
    copy = shutil.copytree(finished() / "upstream", tmp_path / "copy")
    for content in ("{", json.dumps([1]), "{}"):
        (copy / "referdino.json").write_text(content)
        with pytest.raises(InputError, match=r"referdino.json: cannot be read"):
            import_referdino(copy, None, tmp_path / "run")
    shutil.copy(finished() / "upstream/referdino.json", copy)
    (copy / "referdino.safetensors").write_bytes(b"short")
    source = f"tune-referdino --dataset mevis --root {shapes().root} --split train"
    with pytest.raises(
        InputError, match=rf"^{copy}/referdino.safetensors: not a readable .* {source} --out RUN --export.*again$"
    ):
        import_referdino(copy, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_upstream_that_is_older_than_its_tuning_is_told(tmp_path: Path) -> None:
    tuned = shutil.copytree(finished(), tmp_path / "tuned")
    state, record = tuned / "last/state.json", tuned / "upstream/referdino.json"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_referdino(tuned, None, tmp_path / "same")
    # As after Ctrl-C in a tuning that went on.
    record.write_text(json.dumps({**json.loads(record.read_text()), "step": 1}))
    assert json.loads(state.read_text()) == {"step": 2}
    message = rf"upstream: is of step 1, and {tuned} was tuned up to step 2 since; .*--out {tuned} --export$"
    for number, read in enumerate((tuned, tuned / "upstream")):
        warn_once.cache_clear()
        with pytest.warns(UserWarning, match=message):
            import_referdino(read, None, tmp_path / f"run{number}")
    settings = GdinoQueriesSettings(checkpoint=str(tuned / "upstream"), masks="head", short_side=64, keep_ratio=0.4)
    for load in (lambda: GdinoQueries(settings), lambda: load_start(make_settings(checkpoint=str(tuned / "upstream")))):
        warn_once.cache_clear()
        with pytest.warns(UserWarning, match=message):
            load()
    # A copy has no tuning around it.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_referdino(tmp_path / "run0/upstream", None, tmp_path / "copied")


def test_what_a_tuning_has_reached_is_told(tmp_path: Path) -> None:
    """On import, and by --export of one that is not finished."""
    tuned = shutil.copytree(finished(), tmp_path / "tuned")
    words = ["--dataset", "mevis", "--root", str(shapes().root), "--split", "train", "--out", str(tuned), "--export"]
    export = ["tune-referdino", *words]
    assert "not finished" not in CliRunner().invoke(cli, export, catch_exceptions=False).output
    record = json.loads((tuned / "tune.json").read_text())
    record["settings"]["steps"] = 0
    steps = record["settings"]["epochs"] * math.ceil(record["items"] / record["settings"]["accumulate"])
    (tuned / "tune.json").write_text(json.dumps(record))
    printed = CliRunner().invoke(cli, export, catch_exceptions=False).output
    assert f"upstream: of step 2 of {steps}: the tuning is not finished" in printed
    printed = CliRunner().invoke(command, [str(tuned), "--out", str(tmp_path / "run")], catch_exceptions=False).output
    assert f"tuned to step 2 of {steps}; " in printed
    shutil.rmtree(tuned / "upstream")
    upstream = str(tuned / "upstream")
    for read in (
        lambda: import_referdino(tuned, None, tmp_path / "none"),
        lambda: GdinoQueries(GdinoQueriesSettings(checkpoint=upstream, masks="head")),
        lambda: load_start(make_settings(checkpoint=upstream)),
    ):
        with pytest.raises(InputError, match=rf"^{tuned}: this tuning is not finished .*step 2 was saved last.*--export"):
            read()


def test_weights_that_nobody_trained_are_told(tmp_path: Path) -> None:
    copy = shutil.copytree(finished() / "upstream", tmp_path / "copy")
    (copy / "referdino.json").write_text(json.dumps({"source": "pipelines.gdino_shapes", "steps": 0}))
    with pytest.warns(UserWarning, match="copy: is by pipelines.gdino_shapes: it was neither tuned .* nor released"):
        import_referdino(copy, None, tmp_path / "run")
    assert origin_of(tmp_path / "run") == "trained on pipelines.gdino_shapes released"


def test_the_command_that_is_advised_for_a_damaged_folder_cures_it(tmp_path: Path) -> None:
    tuned = shutil.copytree(finished(), tmp_path / "a tuning")
    head = tuned / "upstream/referdino.safetensors"
    before = head.read_bytes()
    head.write_bytes(before[:1000])
    with pytest.raises(InputError, match="write it again with rvos-cache ") as fault:
        import_referdino(tuned, None, tmp_path / "run")
    program, *words = shlex.split(str(fault.value).partition("write it again with ")[2])
    assert program == "rvos-cache" and CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    assert head.read_bytes() == before
