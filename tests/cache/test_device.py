"""--device: one place decides where models run."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest
import torch

from rvos_cache.cli import cli as cache_cli
from rvos_cache.cli.options import DEVICE, ENGINE
from rvos_cache.cli.run import run_command
from rvos_cache.errors import InputError
from rvos_cache.system.device import device, on_device
from rvos_select.cli import cli as select_cli

COMPUTING = {
    "rvos-cache": {"extract", "extract-text", "extract-all", "plan", "pool-clip", "tune-referdino"},
    "rvos-select": {"train", "predict", "ask"},
}


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on a machine with two; the ones that were set as the current device."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def test_every_command_that_computes_takes_it() -> None:
    for name, cli in (("rvos-cache", cache_cli), ("rvos-select", select_cli)):
        taking = {key for key, command in cli.commands.items() if any(p.name == "device" for p in command.params)}
        assert taking == COMPUTING[name]


def test_the_default_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device() == torch.device(name)


def test_the_chosen_one_holds_until_the_end(two_gpus: list[int]) -> None:
    with on_device("cpu"):
        assert device() == torch.device("cpu")
        with on_device(None):
            assert device() == torch.device("cpu")
        with on_device("cuda:1"):
            assert device() == torch.device("cuda:1")
        assert device() == torch.device("cpu")
    assert device() == torch.device("cuda") and two_gpus == [1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:2", "sees 2 GPUs on this machine, cuda:0 to cuda:1"),
        ("gpu", "expected cpu, cuda or cuda:N"),
        ("cuda:", "expected cpu"),
    ],
)
def test_a_device_that_is_not_there(two_gpus: list[int], name: str, message: str) -> None:
    with pytest.raises(InputError, match=message), on_device(name):
        pass
    assert device() == torch.device("cuda") and not two_gpus


def test_no_gpu_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is read or written."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "t.zarr"
    words = ["extract-text", "--dataset", "mevis", "--root", str(tmp_path), "--split", "train", "--out", str(out), "--device"]
    for value, status, message in (("cuda", 1, "sees no GPU on this machine"), ("tpu", 2, "expected cpu, cuda or cuda:N")):
        monkeypatch.setattr(sys, "argv", ["rvos-cache", *words, value])
        with pytest.raises(SystemExit) as stop:
            run_command(cache_cli)
        assert stop.value.code == status and message in capsys.readouterr().err and not out.exists()


def test_the_command_runs_there(two_gpus: list[int]) -> None:
    ran: list[torch.device] = []

    @click.command()
    @DEVICE
    @ENGINE
    def command(**engine: object) -> None:
        ran.append(device())

    command(["--device", "cuda:1"], standalone_mode=False)
    command([], standalone_mode=False)
    assert ran == [torch.device("cuda:1"), torch.device("cuda")] and two_gpus == [1]
    with pytest.raises(click.UsageError, match="--engine local"):
        command(["--device", "cpu", "--engine", "ray"], standalone_mode=False)
