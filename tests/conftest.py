"""One thread per process, and where the real data lies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import cv2
import pytest
import torch

torch.set_num_threads(1)
cv2.setNumThreads(1)


@pytest.fixture
def rvos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a command as its program does; returns its status and its stderr without progress lines."""
    from odd_videos import call

    return lambda *arguments: call(monkeypatch, capsys, *arguments)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the GPU: sums on it differ from run to run, and its convolutions round to TF32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def file_on_cpu() -> Iterator[None]:
    """As `on_cpu`, for all tests of a file and its fixtures, which may load a model for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture
def forks(on_cpu: None) -> None:
    """For tests that train in a forked process: on the CPU, and not where this process has trained on a GPU before, after which PyTorch
    computes no gradients in a fork."""
    if torch.cuda.is_initialized():
        pytest.skip("a test before this one has used the GPU in this process")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real videos and annotations; tests that want it skip where it is not there."""
    root = Path(os.environ.get("RVOS_REAL_DATA", Path(__file__).parents[2] / "shared" / "data")).resolve()
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set RVOS_REAL_DATA")
    return root
