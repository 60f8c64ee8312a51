"""`import rvos_cache`: fast to import, complete, and paths may be text."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import rvos_cache as rc


def test_importing_is_fast() -> None:
    code = "import sys, rvos_cache; print([m for m in ('numpy', 'torch', 'pydantic', 'zarr', 'click') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1])
    assert done.stdout == "[]\n", done.stderr


def test_every_name_is_there() -> None:
    for name in rc.__all__:
        assert getattr(rc, name) is not None and name in dir(rc)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = rc.nothing
    assert rc.__version__ == version("rvos")


def test_from_a_dataset_to_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rc.write_shapes("data", 3, 0)
    assert rc.check("mevis", "data", "train") == []
    assert rc.plan("mevis", "data", "valid_u", "flow", sample=1).videos == 1
    assert rc.extract("mevis", "data", "valid_u", "flow", "tracks.zarr").done == ["shapes100000"]
    assert rc.extract_text("mevis", "data", "valid_u", "hashed", "words.zarr").done == ["shapes100000"]
    assert rc.mirror("tracks.zarr", "mirror.zarr").done == ["shapes100000-mirror"]
    assert rc.export_sola("tracks.zarr", "sola") and list(rc.verify("tracks.zarr")) == []
    assert rc.import_sola("sola/sam2_tracks", "mevis", "data", "valid_u", "imported.zarr", tracks="grid").report.done
    assert rc.open_dataset("mevis", "data", "valid_u").video_ids() == ("shapes100000",)
    assert isinstance(rc.open_cache("words.zarr"), rc.TextCache) and len(rc.content_digest("tracks.zarr")) == 32
    reports = rc.extract_all("mevis", "data", splits=["valid_u"], encoder="hashed", out="caches")
    assert all(report.done and not report.failed for report in reports.values())
