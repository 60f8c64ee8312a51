"""Progress of long steps: a count and the time left, in one line of the terminal or in lines of a log."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rvos_cache.system.progress import Progress, tracked


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [100.0]
    monkeypatch.setattr("rvos_cache.system.progress.time.monotonic", lambda: seconds[0])
    return seconds


def test_a_log_has_a_line_within_seconds_and_then_one_per_minute(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("flow train", total=412, done=10, parts="frames", announce=True) as progress:
        for i in range(4):
            now[0] += 25
            progress.advance(0 if i == 1 else 60, failed=i == 1)
    # Before the first video, after 25 s, and 60 s later, which is the end too.
    assert capsys.readouterr().err.splitlines() == [
        "flow train: 10 of 412 videos, -:--:-- to go",
        "flow train: 11 of 412 videos, 2.4 frames/s, 2:47:05 to go",
        "flow train: 14 of 412 videos, 1 failed, 1.8 frames/s, 2:45:50 to go",
    ]


def test_nothing_to_do_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("flow train", total=3, done=3, announce=True):
        pass
    assert list(tracked([1, 2, 3], "evaluate")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_a_loop_of_seconds_is_told(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in tracked(iter(range(4)), "evaluate", 4):
        now[0] += 1.5
    assert capsys.readouterr().err.splitlines() == [
        "evaluate: 2 of 4 videos, 0:00:03 to go",
        "evaluate: 4 of 4 videos, 0:00:00 to go",
    ]


def test_a_narrow_line_keeps_the_count_and_the_time(now: list[float]) -> None:
    progress = Progress("sam2-grid valid_u", 412, parts="frames")
    progress.advance(60)
    progress.advance(60, failed=True)
    now[0] += 10
    assert progress.line() == "sam2-grid valid_u: 2 of 412 videos, 1 failed, 12.0 frames/s, 0:34:10 to go"
    assert progress.line(60) == "sam2-grid valid_u: 2 of 412 videos, 1 failed, 0:34:10 to go"
    assert progress.line(50) == "sam2-gr…: 2 of 412 videos, 1 failed, 0:34:10 to go"
    for width in range(1, 100):
        assert len(progress.line(width)) <= width
        assert "0:34:10 to go" in progress.line(width) or width < 42


LOOP = """
import sys, time
from rvos_cache.system.progress import Progress
with Progress("sam2-grid-gaussian_noise-5 valid_u", 3, parts="frames", announce=True) as progress:
    time.sleep(0.3)
    for i in range(3):
        progress.advance(1000)
        progress.print(f"a line that stays {i}")
        print("an answer")
        time.sleep(0.2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 60, 79, 80, 120])
def test_a_terminal_shows_one_line_that_fits(columns: int) -> None:
    """Before the first item too. stdout is a pipe: what is printed there is not drawn on the terminal."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.run([sys.executable, "-c", LOOP], stderr=theirs, stdout=subprocess.PIPE, env=env, timeout=60, check=True)
    os.close(theirs)
    output = b""
    while True:
        try:
            output += os.read(ours, 1 << 16)
        except OSError:  # The end: nobody holds the other side.
            break
    os.close(ours)
    assert process.stdout == 3 * b"an answer\n"
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode()))
    states = [line for line in lines if " to go" in line]
    assert all(len(line) <= columns for line in lines)
    assert "0 of 3 videos, -:--:-- to go" in states[0] and "3 of 3 videos" in states[-1]
    assert [line for line in lines if "stays" in line] == [f"a line that stays {i}" for i in range(3)]
    assert ("━" in states[-1]) == (columns >= 80)
