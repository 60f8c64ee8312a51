"""What several files of this folder test on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_caches import write


@pytest.fixture
def caches(tmp_path: Path) -> tuple[Path, Path, Path, Path]:
    """Tracks and words to train on, three videos, and to validate with, one."""
    return (*write(tmp_path, "train", ["v0", "v1", "v2"]), *write(tmp_path, "valid", ["w0"]))
