"""One thread per process, and where the real data lies."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import cv2
import pytest
import torch

torch.set_num_threads(1)
cv2.setNumThreads(1)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the GPU: sums on it differ from run to run, and its convolutions round to TF32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real videos and annotations; tests that want it skip where it is not there."""
    root = Path(os.environ.get("RVOS_REAL_DATA", Path(__file__).parents[2] / "shared" / "data")).resolve()
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set RVOS_REAL_DATA")
    return root
