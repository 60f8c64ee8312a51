"""Commands cut short by a path that cannot be written, a full disk or Ctrl-C: one line, and what was finished is kept."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from odd_chain import HASHED, SPLIT, TEXT, VALID, write_chain
from odd_videos import Result

from rvos_cache.store import TrackCache, content_digest, verify

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "cache"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chain(tmp_path_factory.mktemp("made"))


BELOW_A_FILE: dict[str, tuple[str, ...]] = {
    "extract": ("extract", *SPLIT, "--out", "{out}"),
    "extract-text": ("extract-text", *SPLIT, *HASHED, "--out", "{out}"),
    "train": ("train", "--cache", "{work}/train.zarr", "--text", "{work}/train-text.zarr",
              "--selector", "mean-cosine", "--out", "{out}"),
    "predict": ("predict", "--run", "{work}/run", *VALID, *TEXT, "--out", "{out}"),
    "merge": ("merge", "--selections", "{work}/s.zarr", *VALID, "--out", "{out}"),
    "evaluate": ("evaluate", "--selections", "{work}/s.zarr", *VALID, "--video", "one", "--json", "{out}"),
    "report": ("report", "--run", "{work}/run", "--out", "{out}"),
    "ask": ("ask", "{work}/data/train/JPEGImages/t0", "a square", "--run", "{work}/run", "--out", "{out}"),
}  # fmt: skip


@pytest.mark.parametrize("verb", sorted(BELOW_A_FILE))
def test_a_path_that_cannot_be_written(work: Path, rvos: Callable[..., Result], tmp_path: Path, verb: str) -> None:
    """Below a regular file, where not even root can write."""
    (tmp_path / "file").write_text("kept")
    code, stderr = rvos(*(w.format(work=work, out=tmp_path / "file/out") for w in BELOW_A_FILE[verb]))
    assert code == 1 and stderr.startswith("error: ") and stderr.count("\n") == 0
    assert str(tmp_path / "file") in stderr
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.slow
@pytest.mark.usefixtures("on_cpu")  # its processes are forked, with the full disk
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_keeps_what_was_finished(
    rvos: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """The disk is full once the second video is there: no other is called a failure, and room is all that a re-run needs."""
    arguments = ("extract", "--dataset", "store_fixtures:Tiny", "--root", tmp_path / "6", "--split", "train", "--jobs", jobs)
    arguments = (*arguments, "--tracker", "store_fixtures:TinyTracker", "--out")
    sync, videos = os.fsync, tmp_path / "c.zarr/videos"

    def full(handle: int) -> None:
        if videos.is_dir() and len(list(videos.iterdir())) >= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, stderr = rvos(*arguments, tmp_path / "c.zarr")
    assert code == 1 and stderr == f"error: {tmp_path / 'c.zarr'}: No space left on device; make room or choose a writable path"
    assert not (tmp_path / "c.zarr/failures.jsonl").exists()
    assert list(verify(tmp_path / "c.zarr")) == []
    assert 2 <= len(TrackCache(tmp_path / "c.zarr").video_ids()) < 6
    assert rvos(*arguments, tmp_path / "c.zarr") == rvos(*arguments, tmp_path / "w.zarr") == (0, "")
    assert content_digest(tmp_path / "c.zarr") == content_digest(tmp_path / "w.zarr")


def test_a_full_disk_while_masks_are_written(
    work: Path, rvos: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("merge", "--selections", work / "s.zarr", "--cache", work / "valid_u.zarr", "--out", tmp_path / "png")
    write, count = Path.write_bytes, [0]

    def full(path: Path, raw: bytes) -> int:
        count[0] += 1
        if count[0] > 20:
            write(path, raw[: len(raw) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, raw)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        code, stderr = rvos(*arguments)
    assert code == 1 and "No space left" in stderr and stderr.count("\n") == 0
    assert rvos(*arguments) == (0, "")
    names = [sorted(str(p.relative_to(at)) for p in at.rglob("*.png")) for at in (tmp_path / "png", work / "png")]
    assert names[0] == names[1]


def test_scores_on_a_full_device(work: Path, rvos: Callable[..., Result]) -> None:
    options = ("--selections", work / "s.zarr", "--cache", work / "valid_u.zarr", "--video", "one")
    code, stderr = rvos("evaluate", *options, "--json", "/dev/full")
    assert code == 1 and stderr == "error: /dev/full: No space left on device; make room or choose a writable path"


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_leaves_a_resumable_state(rvos: Callable[..., Result], tmp_path: Path, jobs: int) -> None:
    arguments = ["extract", "--dataset", "store_fixtures:Tiny", "--root", tmp_path / "12", "--split", "train", "--jobs", jobs]
    arguments += ["--tracker", "store_fixtures:TinyTracker", "--out"]
    out, slow = tmp_path / "c.zarr", ["--set", "wait=0.2"]
    # A run in the background ignores SIGINT, and so would its children.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = 'rvos-cache'"
    code += "; from rvos_cache.cli import main; main()"
    env = {**os.environ, "PYTHONPATH": f"{HERE / 'cache'}:{HERE.parent}"}
    # A group of its own, so that all its processes get the signal, as from a terminal.
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, [*arguments, out, *slow])], env=env, stderr=subprocess.PIPE, start_new_session=True
    )
    start = time.monotonic()
    while not (out / "videos").is_dir() or not any((out / "videos").iterdir()):
        assert process.poll() is None and time.monotonic() - start < 60
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    stderr = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130, stderr
    kept, _, again = stderr.splitlines()[-1].partition("; go on with: ")
    assert kept == "interrupted; what was finished is kept" and "Traceback" not in stderr
    assert shlex.split(again)[1:] == [str(word) for word in (*arguments, out, *slow)]
    assert list(verify(out)) == [] and not (out / "failures.jsonl").exists()
    assert 1 <= len(TrackCache(out).video_ids()) < 12
    assert rvos(*arguments, out, *slow[:1], "wait=0.2") == (0, "")
    assert rvos(*arguments, tmp_path / "w.zarr") == (0, "")
    assert content_digest(out) == content_digest(tmp_path / "w.zarr")
