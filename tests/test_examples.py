"""The plugin kit as a user meets it: files of `tests/examples` in an empty folder, and the installed command there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rvos_cache as rc

REPOSITORY = Path(__file__).parents[1]
EXAMPLES = REPOSITORY / "tests" / "examples"
COMMAND = Path(sys.executable).parent / "rvos-cache"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own folder: moving shapes, and the example trackers."""
    folder = tmp_path_factory.mktemp("own")
    rc.write_shapes(folder / "data", 4, 0)
    for name in ("my_tracker.py", "corner_tracker.py"):
        shutil.copy(EXAMPLES / name, folder)
    return folder


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The installed command in `folder`, which is on no import path."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([str(COMMAND), *words], cwd=folder, env=env, capture_output=True, text=True, timeout=100)


def test_the_example_is_short() -> None:
    assert len((EXAMPLES / "my_tracker.py").read_text().splitlines()) < 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), [("my_tracker:MyTracker", ("--set", "max_tracks=12")), ("corner_tracker:CornerTracker", ())]
)
def test_a_tracker_of_the_users_own(folder: Path, name: str, options: tuple[str, ...]) -> None:
    checked = run(folder, "check-tracker", name, *options)
    assert checked.returncode == 0 and "FAILED" not in checked.stdout, checked.stdout + checked.stderr
    out = f"{name.partition(':')[0]}.zarr"
    words = ("extract", "--dataset", "mevis", "--root", "data", "--split", "train", "--tracker", name, *options, "--out", out)
    # Two forked processes, which load no module of the folder themselves.
    extracted = run(folder, *words, "--jobs", "2")
    assert (extracted.returncode, extracted.stdout) == (0, f"{out}: 3 done, 0 were there, 0 failed\n"), extracted.stderr
    verified = run(folder, "verify", out)
    assert (verified.returncode, verified.stdout) == (0, "no fault\n")


def test_the_example_finds_objects(folder: Path) -> None:
    """At least one annotated object is a track, at an IoU of one half over the whole video."""
    out = folder / "found.zarr"
    words = ("extract", "--dataset", "mevis", "--root", "data", "--split", "train", "--tracker", "my_tracker:MyTracker")
    assert run(folder, *words, "--out", str(out)).returncode == 0
    cache, best = rc.TrackCache(out), []
    for video_id in cache.video_ids():
        counts = cache.overlap(video_id)
        union = counts.area[:, None] + counts.gt_area[None] - counts.inter
        best += (counts.inter.sum(-1) / union.sum(-1)).max(0).tolist()
    assert max(best) > 0.5, best


def test_settings_of_the_users_own(folder: Path) -> None:
    listed = run(folder, "settings", "my_tracker:MyTracker")
    assert listed.returncode == 0 and "Levels of each of red, green and blue." in listed.stdout


def test_a_module_of_another_folder_is_one_line(folder: Path, tmp_path: Path) -> None:
    result = run(tmp_path, "check-tracker", "my_tracker:MyTracker")
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert f"it must lie in the current folder ({tmp_path}) or be installed" in result.stderr


def test_version(folder: Path) -> None:
    assert run(folder, "--version").stdout == f"rvos-cache {rc.__version__}\n"
