"""Ctrl-C: one line with the command that goes on, whatever it hits, and no traceback of any process."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from rvos_cache.cli import cli as cache_cli
from rvos_cache.cli.run import _interrupted, run_command
from rvos_cache.media import VideoWriter
from rvos_cache.system.interrupts import starting_processes
from rvos_select.cli import cli as select_cli

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "select"))

from tiny_caches import write  # noqa: E402

SEARCHED = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
GO_ON = {
    "extract", "extract-text", "extract-all", "pool-clip", "mirror", "import-masks", "rvos-cache import-sola", "tune-referdino",
    "train", "predict", "merge", "ask",
}  # fmt: skip


def test_every_command_is_named_with_what_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly the commands that keep what was finished say so, where there is something; train needs --resume."""
    monkeypatch.chdir(tmp_path)
    for words in (["rvos-cache", "tune-referdino", "--out", "my folder"], ["rvos-select", "train", "--out", "my folder"]):
        nothing = f"interrupted; nothing was kept; start again with: {shlex.join(words)}"
        assert _interrupted(cache_cli if words[0] == "rvos-cache" else select_cli, words) == nothing
    (tmp_path / "my folder").mkdir()
    kept = set()
    for program, cli in (("/bin/rvos-cache", cache_cli), ("/bin/rvos-select", select_cli)):
        for verb in cli.commands:
            words = [program, verb, "--out", "my folder"]
            line, _, again = _interrupted(cli, words).partition(" with: ")
            extra = ["--resume"] if verb == "train" else []
            assert shlex.split(again) == [*words, *extra]
            assert line in ("interrupted; what was finished is kept; go on", "interrupted; nothing was kept; start again")
            if "kept; go on" in line and "nothing" not in line:
                kept.add(verb if verb != "import-sola" else f"{Path(program).name} {verb}")
    assert kept == GO_ON
    assert _interrupted(select_cli, ["rvos-select", "train", "--resume"]).endswith("train --resume")
    assert _interrupted(cache_cli, ["rvos-cache", "convert", "ref-davis"]).startswith("interrupted; nothing was kept")


def interrupted(arguments: list[object], is_time: Callable[[], bool], program: str = "rvos-select") -> list[str]:
    """The lines on stderr of a command that gets Ctrl-C, with all its processes, when `is_time`. Its status must be 130."""
    package = program.replace("-", "_")
    # A run in the background ignores SIGINT, and so would its children.
    code = f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = '{program}'"
    code += f"; from {package}.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": SEARCHED}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    start = time.monotonic()
    while not is_time():
        assert process.poll() is None and time.monotonic() - start < 60, process.communicate()[1].decode()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    stderr = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130 and "Traceback" not in stderr, stderr
    return stderr.splitlines()


@pytest.mark.slow
def test_training_goes_on_with_the_printed_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracks, text = write(tmp_path, "train", ["v0", "v1"])
    valid, valid_text = write(tmp_path, "valid", ["w0"])
    given = ["--cache", tracks, "--text", text, "--valid-cache", valid, "--valid-text", valid_text, "--selector", "mean-cosine"]
    out = tmp_path / "my run"
    arguments = ["train", *given, "--set", "epochs=400", "--out", out]
    last = interrupted(arguments, lambda: (out / "last").exists())[-1]
    words = shlex.split(last.partition("; go on with: ")[2])
    assert words[1:] == [*map(str, arguments), "--resume"]
    done = len((out / "metrics.jsonl").read_text().splitlines())
    assert 1 <= done < 400
    monkeypatch.setattr(sys, "argv", [*words, "--set", f"epochs={done + 1}"])
    with pytest.raises(SystemExit) as stop:
        run_command(select_cli)
    assert stop.value.code == 0 and len((out / "metrics.jsonl").read_text().splitlines()) == done + 1


def test_shapes_in_many_processes_stop_at_once(tmp_path: Path) -> None:
    """Videos that were not begun are not drawn, and no process shows a traceback."""
    arguments = ["shapes", "--out", tmp_path / "out", "--videos", 4000, "--jobs", 2]
    begun = tmp_path / "out/train/JPEGImages"
    lines = interrupted(arguments, lambda: begun.is_dir() and len(list(begun.iterdir())) > 2, "rvos-cache")
    assert lines[-1].startswith("interrupted; nothing was kept; start again with: ")
    assert len(list(begun.iterdir())) < 200


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_never_gets_ctrl_c(method: str) -> None:
    """Not even before its first line of code runs, where a handler of its own would be too late."""
    with ProcessPoolExecutor(1, get_context(method)) as pool:
        with starting_processes():
            future = pool.submit(time.sleep, 0.2)
        (child,) = pool._processes
        for _ in range(10):
            os.kill(child, signal.SIGINT)
            time.sleep(0.02)
        assert future.result(timeout=60) is None
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


DROP = """
import signal, sys, time, click
from rvos_cache.cli.run import run_command
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "drop"

class Dropping:
    def __del__(self):
        raise KeyboardInterrupt

@click.command()
def drop():
    dropping = Dropping()
    del dropping
    time.sleep(50)

run_command(drop)
"""


def test_an_interrupt_that_python_drops_is_raised_again() -> None:
    """In a destructor, as in callbacks of imports, Python prints an exception and forgets it."""
    env = {**os.environ, "PYTHONPATH": SEARCHED}
    process = subprocess.run([sys.executable, "-c", DROP], env=env, capture_output=True, text=True, timeout=40, check=False)
    assert process.returncode == 130
    assert process.stderr.split("\n") == ["", "interrupted; nothing was kept; start again with: drop", ""]


def test_a_fork_frees_no_decoder_of_its_parent(tmp_path: Path) -> None:
    """It would wait for the decoder's threads, which a fork does not have."""
    with VideoWriter(tmp_path / "a.mp4", 5, (64, 96)) as film:
        for _ in range(4):
            film.write(np.zeros((64, 96, 3), np.uint8))
    code = (
        "import gc, sys, multiprocessing as m; from pathlib import Path\n"
        "from rvos_cache.media import file_video; from rvos_cache.system.interrupts import forking\n"
        "gc.disable()\n"
        "def keep():\n"
        "    video = file_video(Path(sys.argv[1]), 'a', 1); cycle = [video]; cycle.append(cycle); video.read(1)\n"
        "    return cycle\n"
        "alive = keep(); keep()\n"
        "child = m.get_context('fork').Process(target=gc.collect)\n"
        "with forking(): child.start()\n"
        "child.join(20); sys.exit(0 if child.exitcode == 0 else child.kill() or 1)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.mp4")], timeout=60).returncode == 0
