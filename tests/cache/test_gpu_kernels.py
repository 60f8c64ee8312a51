"""Where Triton is missing, or cannot compile, operators of PyTorch compute; nothing fails."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

import rvos_cache.system
from rvos_cache.system.gpu_kernels import has_triton


def probe(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> None:
    """An installed Triton whose first kernel does what `run` does."""
    module = ModuleType("triton_probe")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "rvos_cache.system.triton_probe", module)
    monkeypatch.setattr(rvos_cache.system, "triton_probe", module, raising=False)
    has_triton.cache_clear()


def raising(error: Exception) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


@pytest.fixture(autouse=True)
def forget() -> Any:
    has_triton.cache_clear()
    yield
    has_triton.cache_clear()


def test_a_kernel_that_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    probe(monkeypatch, lambda: None)
    assert has_triton()


def test_without_triton_there_is_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not has_triton()


def test_without_a_compiler_a_warning_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    probe(monkeypatch, raising(RuntimeError("Failed to find C compiler.\nPlease specify")))
    with pytest.warns(UserWarning, match=r"cannot compile for this GPU \(Failed to find C compiler. Please specify\)") as caught:
        assert not has_triton() and not has_triton()
    assert len(caught) == 1


def test_a_full_gpu_is_no_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    probe(monkeypatch, raising(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        has_triton()
