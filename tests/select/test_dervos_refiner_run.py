"""Runs of stage 0 of DeRVOS: what is refused, the page, and the DVIS++ folder that replace-refiner writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_dvis
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from test_refcoco import write_refcoco
from tiny_refiner import SMALL, TAIS, data, refused, settings_of, work
from tiny_sam2 import without_gpu

from pipelines.dervos_refiner import dervos_refiner
from rvos_cache.cli import cli
from rvos_cache.errors import InputError
from rvos_cache.trackers.dvis import DvisSettings, DvisTracker
from rvos_cache.tuning.replace_refiner import replace_refiner
from rvos_select.tuning.refiner_model import LiveDervos


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """As in the other tests of a run."""
    with without_gpu():
        yield


@pytest.fixture(scope="module")
def dagger() -> Path:
    """The folder with the trained refiner, and the output of the command in a file beside it."""
    out = work() / "DVIS-dagger"
    result = CliRunner().invoke(cli, ["replace-refiner", str(work() / "DVIS"), str(work() / "run"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    (work() / "output.txt").write_text(result.output)
    return out


def test_replace_refiner_changes_the_refiner_alone(dagger: Path) -> None:
    before, after = load_file(work() / "DVIS/dvis_head.safetensors"), load_file(dagger / "dvis_head.safetensors")
    trained = load_file(work() / "run/last/trained.safetensors")
    assert before.keys() == after.keys()
    changed = sorted(name for name in before if not torch.equal(before[name], after[name]))
    assert changed and all(name.startswith("refiner.") for name in changed)
    assert all(torch.equal(after[name], trained[name]) for name in changed)
    output = (work() / "output.txt").read_text()
    assert [line.removeprefix("replaced: ") for line in output.splitlines() if line.startswith("replaced")] == changed
    record = json.loads((dagger / "conversion.json").read_text())["refiner"]
    assert record["tensors"] == changed and record["step"] == 2 and record["settings"]["points"] == 200
    assert (dagger / "model.safetensors").read_bytes() == (work() / "DVIS/model.safetensors").read_bytes()
    own = DvisTracker(DvisSettings(checkpoint=str(dagger), side=64, pool=4)).weight_hashes()
    assert own["dvis_head.safetensors"] == record["after"] != record["before"]


def test_its_tracks_are_other_tracks(dagger: Path) -> None:
    masks = []
    for folder in (work() / "DVIS", dagger):
        tracker = DvisTracker(DvisSettings(checkpoint=str(folder), side=64, pool=4))
        tracks = tracker.track(data().video(data().video_ids()[0]), [])
        masks.append(tracks.masks.area().tolist())
    assert masks[0] != masks[1]


def test_another_run_is_refused(tmp_path: Path) -> None:
    own = shutil.copytree(work() / "run", tmp_path / "run")
    assert "settings.train_refiner = 'all' (now 'no_time')" in refused(own, train_refiner="no_time")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("x")
    assert "is not a tuning run" in refused(tmp_path / "other")


def test_what_cannot_be_trained_on_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such folder" in refused(tmp_path / "a", dvis=str(tmp_path / "none"))
    assert "takes at most 62 tokens" in refused(tmp_path / "a", beit3={"checkpoint": str(work() / "BEIT3"), "longest": 90})
    monkeypatch.setattr(type(data()), "has_ground_truth", property(lambda self: False), raising=False)
    assert "no ground truth" in refused(tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"config": {"understanding": "words"}}, "leave understanding and queries"),
        ({"config": {"side": 72}}, "expected a multiple of 16"),
        ({"config": {"side": 48}}, "whose number of patches divides"),
        ({"side": 100}, "multiple of 32"),
        ({"train_refiner": "time"}, "train_refiner"),
        ({"points": 0}, "points"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings_of(**values)


def test_a_loss_that_is_not_finite_names_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = lambda *a: {"loss": torch.tensor(float("nan"), requires_grad=True)}  # noqa: E731
    monkeypatch.setattr(LiveDervos, "losses", nan)
    message = refused(tmp_path / "run")
    assert message.startswith("video ") and ", expression " in message and "the loss is nan" in message


def test_too_little_memory_names_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LiveDervos, "losses", fail)
    assert "--set batch_size=1" in refused(tmp_path / "run")


def test_replace_refiner_refuses(tmp_path: Path) -> None:
    def message(dvis: Path, run: Path, out: Path = tmp_path / "out") -> str:
        with pytest.raises(InputError) as error:
            replace_refiner(str(dvis), run, out)
        assert not (tmp_path / "out").exists() and "\n" not in str(error.value)
        return str(error.value)

    assert "already exists" in message(work() / "DVIS", work() / "run", work() / "DVIS")
    assert "'none': there is no such folder, nor one in RVOS_CHECKPOINTS" in message(Path("none"), work() / "run")
    assert "tune.json: not found" in message(work() / "DVIS", work() / "DVIS")
    other = tiny_dvis.write_checkpoint(tmp_path / "other")
    tensors = load_file(other / "dvis_head.safetensors")
    save_file({n: t * 1.1 if n.startswith("refiner.") else t for n, t in tensors.items()}, other / "dvis_head.safetensors")
    assert "is not the checkpoint that the refiner of" in message(other, work() / "run")
    run = shutil.copytree(work() / "run", tmp_path / "run")
    saved = load_file(run / "last/trained.safetensors")
    save_file({name: t for name, t in saved.items() if "decoder_norm" not in name}, run / "last/trained.safetensors")
    assert "'refiner.decoder_norm.weight' is missing" in message(work() / "DVIS", run)
    shutil.rmtree(run / "last")
    assert "no step has been saved yet" in message(work() / "DVIS", run)
    record = json.loads((run / "tune.json").read_text())
    (run / "tune.json").write_text(json.dumps({**record, "trains": "something"}))
    assert "is a tuning run of another model" in message(work() / "DVIS", run)


def test_replace_refiner_says_how_far_a_run_is_that_is_not_finished(tmp_path: Path, dagger: Path) -> None:
    assert "not finished" not in (work() / "output.txt").read_text()
    run = shutil.copytree(work() / "run", tmp_path / "run")
    record = json.loads((run / "tune.json").read_text())
    # Five expressions in steps of two: three steps in an epoch.
    record["settings"] |= {"steps": 0, "epochs": 4}
    (run / "tune.json").write_text(json.dumps(record))
    result = CliRunner().invoke(cli, ["replace-refiner", str(work() / "DVIS"), str(run), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0
    with pytest.warns(UserWarning, match="run: is not finished: 2 of 12 steps"):
        replaced = replace_refiner(str(work() / "DVIS"), run, tmp_path / "out2")
    assert [line.removeprefix("as before: ") for line in result.output.splitlines() if line.startswith("as before")] == list(
        replaced.same
    )
    names = {name for name in load_file(work() / "DVIS/dvis_head.safetensors") if name.startswith("refiner.")}
    assert {*replaced.same, *replaced.replaced} == names


def test_the_page(tmp_path: Path) -> None:
    for name in ("refcoco+", "refcocog"):
        if not (work() / "data" / name).exists():
            write_refcoco(tmp_path / "more", name, ("train",))
            shutil.copytree(tmp_path / "more" / name, work() / "data" / name)
            shutil.rmtree(tmp_path / "more")
    flat = {**{name: value for name, value in SMALL.items() if name != "config"}, "steps": 1}
    sets = [f"--set={name}={value}" for name, value in flat.items()]
    sets += [f"--set=config.{name}={value}" for name, value in TAIS.items()]
    own = ["--images", str(work() / "data"), "--dvis", f"{work() / 'DVIS'}/", "--beit3", f"{work() / 'BEIT3'}/"]
    result = CliRunner().invoke(dervos_refiner, [*own, "--out", str(tmp_path / "run"), *sets], catch_exceptions=False)
    assert f"rvos-cache replace-refiner {work() / 'DVIS'} {tmp_path / 'run'} --out" in result.output
    record = json.loads((tmp_path / "run/tune.json").read_text())
    settings = record["settings"]
    assert (settings["dvis"], settings["beit3"]["checkpoint"]) == (str(work() / "DVIS"), str(work() / "BEIT3"))
    assert [d["dataset"] for d in record["datasets"]] == ["refcoco", "refcoco+", "refcocog"] and record["items"] == 15
    listed = CliRunner().invoke(dervos_refiner, ["--list"], catch_exceptions=False).output
    assert "train_refiner" in listed and "config.width" in listed
    with pytest.raises(InputError, match="needs the option --beit3 FOLDER"):
        CliRunner().invoke(dervos_refiner, ["--dvis", "x"], catch_exceptions=False)
