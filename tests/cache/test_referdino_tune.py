"""Runs of tune-referdino: resumed, exported, refused; on a tiny random GroundingDINO and moving shapes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_sam2 import without_gpu
from tiny_tuning import SMALL, finished, make_settings, shapes, work

from rvos_cache.cli import cli
from rvos_cache.errors import InputError
from rvos_cache.system.locks import folder_lock
from rvos_cache.trackers.referdino import live
from rvos_cache.trackers.referdino.lora import LoraLinear
from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings
from rvos_cache.trackers.referdino.start import load_start
from rvos_cache.trackers.referdino.tracker import GdinoQueries
from rvos_cache.trackers.referdino.trained import group_of
from rvos_cache.tuning import export, run, tune
from rvos_cache.tuning.augment import TuneClip
from rvos_cache.tuning.clips import ClipSource
from rvos_cache.tuning.run import Run, saved_tensors

pytestmark = pytest.mark.slow

FILES = ("last/trained.safetensors", "last/optimizer.safetensors", "upstream/model.safetensors", "metrics.jsonl")
COMMAND = ["tune-referdino", "--dataset", "mevis", "--split", "train"]


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """Steps are compared to the last bit."""
    with without_gpu():
        yield


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A copy of the finished run, for tests that change it."""
    return shutil.copytree(finished(), tmp_path / "run")


def test_only_trained_parameters_move() -> None:
    start = load_start(make_settings())
    before = start.live.state_dict()
    stored = load_file(finished() / "last" / "trained.safetensors")
    assert stored.keys() == saved_tensors(start).keys()
    moved = {group_of(name) for name, tensor in stored.items() if not torch.equal(tensor, before[name])}
    assert moved == {"lora", "box", "feat_map", "bert_norms", "norm0", "pyramid", "mask_decoder", "enhancer"}
    upstream = load_file(finished() / "upstream" / "model.safetensors")
    base = load_file(work() / "gdino" / "model.safetensors")
    changed = {name for name in base if not torch.equal(upstream[name], base[name])}
    adapted = {f"{name}.weight" for name, module in start.live.grounding.named_modules() if isinstance(module, LoraLinear)}
    trained = {name for name in changed if "LayerNorm" in name or "text_projection" in name or name.startswith("bbox_embed.0")}
    assert trained
    assert changed <= adapted | trained
    assert len(adapted & changed) > len(adapted) / 2


def test_the_exported_folder_extracts() -> None:
    settings = GdinoQueriesSettings(checkpoint=str(finished() / "upstream"), masks="head", short_side=64, keep_ratio=0.4)
    tracker = GdinoQueries(settings)
    video = shapes().video(shapes().video_ids()[0])
    tracks = tracker.track(video, shapes().expressions(video.video_id)[:1])
    assert tracks.masks.shape[0] == tracker.upstream.queries
    assert tracks.masks.area().any()


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    tune(shapes(), make_settings(steps=1), tmp_path / "run")
    tune(shapes(), make_settings(steps=2), tmp_path / "run")
    for name in FILES:
        assert (tmp_path / "run" / name).read_bytes() == (finished() / name).read_bytes(), name


def test_extracting_with_other_settings_than_tuned_is_a_warning() -> None:
    folder = str(finished() / "upstream")
    values = {"checkpoint": folder, "masks": "box", "short_side": 64}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GdinoQueries(GdinoQueriesSettings(**values, keep_ratio=0.4))
    with pytest.warns(
        UserWarning,
        match=r"was tuned with keep_ratio=0\.4, alpha=0\.1; extract with --set keep_ratio=0\.4 --set alpha.*, or tune",
    ):
        GdinoQueries(GdinoQueriesSettings(**values, alpha=0.3))


@pytest.mark.parametrize("readers", [1, 3])
def test_readers_change_nothing(readers: int, tmp_path: Path) -> None:
    tune(shapes(), make_settings(readers=readers), tmp_path / "run")
    for name in (*FILES, "tune.json"):
        assert (tmp_path / "run" / name).read_bytes() == (finished() / name).read_bytes() or name == "tune.json", name
    assert json.loads((tmp_path / "run/tune.json").read_text())["settings"] == record_of(finished())["settings"]


def clips_of(training: Run, step: int) -> list[TuneClip]:
    return [training.source.clip(*each) for each in training.clips(step)]


def record_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "tune.json").read_text()))


def test_a_film_is_read_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames without a file each: of a film, or of a data set of the user's own."""
    busy, most = 0, 0
    original = shapes().video(shapes().video_ids()[0])
    counting = threading.Lock()

    def read(t: int) -> Any:
        nonlocal busy, most
        with counting:
            busy += 1
            most = max(most, busy)
        time.sleep(0.01)
        with counting:
            busy -= 1
        return original.source(t)

    for files, limit in ((original.files, 4), ((), 1)):
        source = ClipSource(shapes(), make_settings())
        monkeypatch.setattr(source.dataset, "video", lambda _, files=files: replace(original, source=read, files=files))
        busy = most = 0
        number = next(i for i, item in enumerate(source.items) if item.expression.video_id == original.video_id)
        with ThreadPoolExecutor(4) as pool:
            clips = list(pool.map(source.clip, [number] * 4, [torch.Generator().manual_seed(seed) for seed in range(4)]))
        assert (most == 1) == (limit == 1) and len(clips) == 4


def test_random_pruning_is_new_in_each_step_and_the_same_when_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"prune_score": "random", "accumulate": 2}
    seeds: dict[str, list[int]] = {}

    def tuned(name: str, *steps: int) -> Path:
        seeds[name] = []

        def prune(*arguments: Any, seed: int, **others: Any) -> Any:
            seeds[name].append(seed)
            return original(*arguments, seed=seed, **others)

        with monkeypatch.context() as patch:
            patch.setattr(live, "prune_call", prune)
            for last in steps:
                tune(shapes(), make_settings(steps=last, **settings), tmp_path / name)
        return tmp_path / name

    original = live.prune_call
    whole, resumed = tuned("whole", 2), tuned("resumed", 1, 2)
    assert len(set(seeds["whole"])) == 4 and seeds["resumed"] == seeds["whole"]
    for name in FILES:
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name


def test_ctrl_c_keeps_the_step_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Run.step

    def step(self: Run, number: int, batch: Sequence[Any]) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return take(self, number, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", step)
        with pytest.raises(KeyboardInterrupt):
            tune(shapes(), make_settings(), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "last" / "state.json").read_text()) == {"step": 1}
    tune(shapes(), make_settings(), tmp_path / "run")
    assert (tmp_path / "run" / FILES[0]).read_bytes() == (finished() / FILES[0]).read_bytes()


def test_lines_of_lost_steps_are_removed(own: Path) -> None:
    with open(own / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "loss": 1}\n')
    tune(shapes(), make_settings(), own)
    assert [json.loads(line)["step"] for line in (own / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_export_alone_writes_the_same_folder(own: Path) -> None:
    shutil.rmtree(own / "upstream")
    export(own)
    for path in (finished() / "upstream").iterdir():
        if path.suffix == ".safetensors":
            assert (own / "upstream" / path.name).read_bytes() == path.read_bytes()
    record = json.loads((own / "upstream" / "referdino.json").read_text())
    assert (record["source"], record["step"], record["settings"]["frames"]) == ("tune-referdino", 2, 3)


def test_the_command(tmp_path: Path) -> None:
    root = ["--root", str(work() / "shapes"), "--out", str(tmp_path / "run")]
    sets = [f"--set={name}={value}" for name, value in {**SMALL, "steps": 1, "checkpoint": work() / "gdino"}.items()]
    result = CliRunner().invoke(cli, [*COMMAND, *root, *sets], catch_exceptions=False)
    assert (
        f"--set checkpoint={tmp_path / 'run' / 'upstream'} --set masks=head --set keep_ratio=0.4 --set short_side=64\n"
        in result.output
    )
    assert "finished already" not in result.output and "tune, epoch 1/1, loss" in result.output
    result = CliRunner().invoke(cli, [*COMMAND, *root, *sets], catch_exceptions=False)
    assert f"{tmp_path / 'run'}: was finished already, after 1 step; a larger --set steps trains further\n" in result.output
    shutil.rmtree(tmp_path / "run" / "upstream")
    CliRunner().invoke(cli, [*COMMAND, *root, "--export"], catch_exceptions=False)
    assert (tmp_path / "run" / "upstream" / "model.safetensors").exists()
    assert "accumulate" in CliRunner().invoke(cli, ["settings", "tune-referdino"]).output


def refused(folder: Path, **values: Any) -> str:
    with pytest.raises(InputError) as error:
        tune(shapes(), make_settings(**values), folder)
    return str(error.value)


def test_another_run_in_the_folder_is_refused(own: Path) -> None:
    message = refused(own, lr=0.1, augment="video")
    assert "settings.augment = 'none' (now 'video'), settings.lr = 0.0001 (now 0.1); give the same, --set augment=none" in message
    # Before a checkpoint is looked for.
    assert "settings.checkpoint = " in refused(own, checkpoint="nobody/nothing")
    # It changes what a step needs, not what it computes.
    tune(shapes(), make_settings(checkpointing=True), own)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert "is not a tuning run" in refused(tmp_path)
    with pytest.raises(InputError, match=r"tune.json: not found"):
        CliRunner().invoke(cli, [*COMMAND, "--root", "x", "--out", str(tmp_path), "--export"], catch_exceptions=False)


def test_one_process_trains_a_run(own: Path) -> None:
    with folder_lock(own, "tune-referdino"):
        assert "another process is writing there" in refused(own)


def test_a_damaged_state_is_refused(own: Path) -> None:
    path = own / "last" / "trained.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    assert f"{path}: {name} is missing" in refused(own)
    (own / "last" / "state.json").write_text("{")
    assert "state.json: damaged" in refused(own)


def test_another_checkpoint_is_refused(own: Path) -> None:
    record = json.loads((own / "tune.json").read_text())
    record["checkpoint"] = {"gdino": "0"}
    (own / "tune.json").write_text(json.dumps(record))
    assert "checkpoint.gdino" in refused(own)
    with pytest.raises(InputError, match="not the checkpoint that it was tuned from"):
        export(own)


def test_a_loss_that_is_not_finite_names_its_expression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = run.all_losses
    monkeypatch.setattr(run, "all_losses", lambda *a: {**(terms := losses(*a)), "loss": terms["loss"] * float("nan")})
    message = refused(tmp_path / "run")
    assert message.startswith("video ")
    assert ", expression " in message
    assert "the loss is nan" in message


def test_too_little_memory_names_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run, "all_losses", fail)
    message = refused(tmp_path / "run", batch_size=2, frames=6)
    assert "2 clips at once of 6 frames" in message
    assert "--set batch_size=1 --set accumulate=2, or --set checkpointing=true, or --set frames=3" in message


def test_a_step_of_two_clips_is_one_after_the_other(tmp_path: Path) -> None:
    values: dict[str, Any] = {"train_noise": "off", "steps": 1, "max_norm": 1e9}
    weights = []
    for name, batch, accumulate in (("together", 2, 1), ("apart", 1, 2)):
        tune(shapes(), make_settings(batch_size=batch, accumulate=accumulate, **values), tmp_path / name)
        weights.append(load_file(tmp_path / name / "last" / "optimizer.safetensors"))
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert rows[0]["lr"] == 1e-4
    for name, value in weights[0].items():
        if name.endswith(".exp_avg"):
            # Group norms remove some biases: what is left of their gradients is rounding.
            assert torch.allclose(value, weights[1][name], rtol=1e-2, atol=max(1e-5, 1e-2 * float(value.abs().max()))), name


def test_the_loss_falls_on_one_clip(tmp_path: Path) -> None:
    # Without classes, whose loss is far larger on random weights.
    settings = make_settings(train_noise="off", lr=3e-3, max_norm=1e9, weights={"cls": 0})
    source = ClipSource(shapes(), settings)
    training = Run(settings, source, load_start(settings), tmp_path)
    clips = clips_of(training, 0)
    values = [training.step(0, clips)["loss"] for _ in range(8)]
    assert values[-1] < 0.7 * values[0]


def test_a_step_has_its_rate_and_a_cut_gradient(tmp_path: Path) -> None:
    settings = make_settings(drop_epoch=1, drop_factor=0.5, accumulate=3, max_norm=0.25)
    source = ClipSource(shapes(), settings)
    training = Run(settings, source, load_start(settings), tmp_path)
    in_second = training.steps_per_epoch
    clips = clips_of(training, in_second)
    assert training.step(in_second, clips)["norm"] > 1
    assert training.optimizer.param_groups[0]["lr"] == settings.rate(1) == 1e-4 * 3 / 2 * 0.5
    total = sum(float(p.grad.square().sum()) for p in training.parameters if p.grad is not None) ** 0.5
    assert total == pytest.approx(0.25, rel=1e-3)
    names = [
        [clip.name for step in range(e * in_second, (e + 1) * in_second) for clip in clips_of(training, step)] for e in (0, 1)
    ]
    assert sorted(names[0]) == sorted(names[1])
    assert names[0] != names[1]


def test_bf16_takes_a_step(tmp_path: Path) -> None:
    tune(shapes(), make_settings(precision="bf16", steps=1), tmp_path / "run")
    assert (tmp_path / "run" / "upstream" / "model.safetensors").exists()


def test_a_thread_that_gets_no_signals_trains(tmp_path: Path) -> None:
    thread = threading.Thread(target=tune, args=(shapes(), make_settings(steps=1), tmp_path / "run"))
    thread.start()
    thread.join()
    assert (tmp_path / "run" / "upstream").exists()
