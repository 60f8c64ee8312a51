"""Processes that use GPUs: where each runs, and that they write the cache of one process. There is no GPU: places are given."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from rvos_cache.errors import InputError
from rvos_cache.extraction import extract, local_engine, spawned
from rvos_cache.extraction.spawned import SHARED, Place, places, places_here
from rvos_cache.extraction.work import OneStep
from rvos_cache.store import content_digest, verify
from rvos_cache.system import device as device_module
from rvos_cache.system.device import limit_memory, memory_share, on_device, uses_gpu

sys.path.insert(0, str(Path(__file__).parent))
TINY, TRACKER = "store_fixtures:Tiny", "store_fixtures:TinyTracker"


def test_process_k_is_on_gpu_k_mod_count() -> None:
    assert places(5, "cuda", 2) == [Place(f"cuda:{k % 2}", SHARED / (2 if k % 2 else 3)) for k in range(5)]
    assert places(2, "cuda", 4) == [Place("cuda:0", SHARED), Place("cuda:1", SHARED)]
    assert places(3, "cuda:1", 4) == [Place("cuda:1", SHARED / 3)] * 3


def test_places_follow_the_machine_and_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    assert [p.device for p in places_here(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    with on_device("cuda:1"):
        assert [p.device for p in places_here(2)] == ["cuda:1", "cuda:1"]


def test_the_share_is_a_limit_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[float, str]] = []
    monkeypatch.setattr(device_module, "_share", 1.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, at: set_to.append((share, str(at))))
    limit_memory(0.3)
    assert memory_share() == 0.3 and set_to == [(0.3, "cuda")]


def test_forks_where_no_model_is_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker of the CPU on a machine with a GPU does not use it."""
    taken: list[str] = []
    monkeypatch.setattr(local_engine, "_run_forked", lambda *_: iter([taken.append("fork")]))
    monkeypatch.setattr(local_engine, "run_spawned", lambda *_: iter([taken.append("spawn")]))
    for there, used, name in ((False, False, "fork"), (True, False, "fork"), (True, True, "spawn")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=used: used)
        assert uses_gpu() is used
        list(local_engine.LocalEngine(2).run(OneStep(lambda *_: 0), None, ["a", "b"]))  # type: ignore[arg-type]
        assert taken.pop() == name
    with on_device("cpu"):
        assert not uses_gpu()


def test_a_step_of_this_process_cannot_be_given_away() -> None:
    with pytest.raises(InputError, match="--jobs 2: this step cannot be given to other processes"):
        next(spawned.run_spawned(OneStep(lambda *_: 0), None, ["a", "b"], 2))  # type: ignore[arg-type]


@pytest.mark.slow
def test_they_write_the_cache_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video that fails stops no other."""
    root, overrides = tmp_path / "5", {"bad": "v03"}
    extract(TINY, root, "train", TRACKER, tmp_path / "one.zarr", overrides=overrides)
    monkeypatch.setattr(local_engine, "uses_gpu", lambda: True)
    monkeypatch.setattr(spawned, "places_here", lambda count: [Place("cpu", 0.5)] * count)
    report = extract(TINY, root, "train", TRACKER, tmp_path / "two.zarr", overrides=overrides, jobs=2)
    assert sorted(report.done) == ["v00", "v01", "v02", "v04"] and "truncated" in report.failed["v03"]
    assert content_digest(tmp_path / "two.zarr") == content_digest(tmp_path / "one.zarr")
    assert list(verify(tmp_path / "two.zarr")) == []


@pytest.mark.slow
def test_a_device_that_is_not_there_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_engine, "uses_gpu", lambda: True)
    monkeypatch.setattr(spawned, "places_here", lambda count: [Place("cuda:9", 0.5)] * count)
    with pytest.raises(InputError, match="device cuda:9"):
        extract(TINY, tmp_path / "4", "train", TRACKER, tmp_path / "t.zarr", jobs=2)
