"""Engines: a video is written while the next is made, forked processes, and a local Ray whose workers are killed."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rvos_cache.cli import cli
from rvos_cache.errors import InputError
from rvos_cache.extraction import TrackWork, engine_of, extract, plan_work
from rvos_cache.extraction.local_engine import LocalEngine
from rvos_cache.extraction.plan import spread
from rvos_cache.extraction.work import Pending
from rvos_cache.store import CacheWriter, Card, TrackCache, content_digest, verify

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
TINY, TRACKER = "store_fixtures:Tiny", "store_fixtures:TinyTracker"
DYING = "engine_fixtures:Dying"


class Stages:
    """Work that notes who does what when. slow: seconds that each step takes; fails: video -> what writing it raises."""

    def __init__(self, slow: float = 0.0, fails: dict[str, BaseException] | None = None, detached: bool = True) -> None:
        self.slow, self.fails, self.detached = slow, fails or {}, detached
        self.log: list[tuple[str, str, str]] = []

    def make(self, video_id: str) -> Pending:
        self._step("make", video_id)
        return Pending(lambda writer: self._write(video_id), self.detached)

    def _write(self, video_id: str) -> int:
        self._step("write", video_id)
        if video_id in self.fails:
            raise self.fails[video_id]
        return 7

    def _step(self, what: str, video_id: str) -> None:
        self.log.append((what, video_id, threading.current_thread().name))
        time.sleep(self.slow)


def outcomes(work: Stages, count: int, jobs: int = 1) -> list[tuple[str, int, str | None]]:
    results = LocalEngine(jobs).run(work, None, [f"v{i}" for i in range(count)])  # type: ignore[arg-type]
    return [(o.video_id, o.frames, o.error) for o in results]


def test_a_video_is_written_while_the_next_is_made() -> None:
    class Meeting(Stages):
        """Writing a video ends only when the next is being made."""

        begun = {f"v{i}": threading.Event() for i in range(5)}

        def make(self, video_id: str) -> Pending:
            self.begun[video_id].set()
            return super().make(video_id)

        def _write(self, video_id: str) -> int:
            following = f"v{int(video_id[1:]) + 1}"
            if following in self.begun and not self.begun[following].wait(10):
                raise InputError(f"{following} was not begun")
            return super()._write(video_id)

    work = Meeting()
    assert outcomes(work, 5) == [(f"v{i}", 7, None) for i in range(5)]
    at = {entry[:2]: i for i, entry in enumerate(work.log)}
    # One writes, and never more than one ahead.
    assert len({thread for what, _, thread in work.log if what == "write"}) == 1
    assert all(at["write", f"v{i}"] < at["make", f"v{i + 2}"] for i in range(3))


def test_what_is_not_detached_is_written_by_the_thread_that_made_it() -> None:
    work = Stages(detached=False)
    outcomes(work, 3)
    assert {thread for *_, thread in work.log} == {threading.current_thread().name}
    assert [entry[:2] for entry in work.log] == [(what, f"v{i}") for i in range(3) for what in ("make", "write")]


def test_a_fault_of_writing_belongs_to_its_video() -> None:
    results = outcomes(Stages(fails={"v1": InputError("v1: torn"), "v2": OSError(errno.EIO, "bad sector")}), 4)
    assert [video for video, *_ in results] == ["v0", "v1", "v2", "v3"]
    assert (results[1][2], results[3][2]) == ("v1: torn", None) and "bad sector" in str(results[2][2])


@pytest.mark.usefixtures("on_cpu")  # its processes are forked, with this work
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_stops_the_run(jobs: int) -> None:
    work = Stages(slow=0.01, fails={"v1": OSError(errno.ENOSPC, "No space left on device")})
    with pytest.raises(OSError, match="No space left"):
        outcomes(work, 20, jobs)
    assert ("make", "v19", "MainThread") not in work.log


def test_a_stop_waits_for_the_video_that_is_being_written() -> None:
    class Stopped(Stages):
        def make(self, video_id: str) -> Pending:
            if video_id == "v1":
                raise KeyboardInterrupt
            return super().make(video_id)

        def _write(self, video_id: str) -> int:
            time.sleep(0.2)
            self.log.append(("written", video_id, ""))
            return 7

    work = Stopped()
    with pytest.raises(KeyboardInterrupt):
        outcomes(work, 3)
    assert work.log[-1][:2] == ("written", "v0")


def test_features_that_come_by_frame_are_not_computed_beside_the_next_video(tmp_path: Path) -> None:
    from engine_fixtures import Streaming

    extract(TINY, tmp_path / "6", "train", "engine_fixtures:Streaming", tmp_path / "a.zarr")
    assert list(verify(tmp_path / "a.zarr")) == [] and len(TrackCache(tmp_path / "a.zarr").video_ids()) == 6
    assert not Streaming.overlapped


def test_work_travels_without_what_it_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    monkeypatch.chdir(tmp_path)
    work = TrackWork(TINY, Path("3"), "train", TRACKER, {"size": 5})
    assert work.model.settings.size == 5 and work.source.video_ids()
    sent = pickle.loads(pickle.dumps(work))
    assert set(vars(sent)) == {"dataset", "root", "split", "tracker", "overrides", "corrupt"}
    assert sent.root == tmp_path / "3" and sent.model.settings.size == 5


def test_options_of_another_engine_are_refused() -> None:
    with pytest.raises(InputError, match="--jobs 3 is for --engine local"):
        engine_of("ray", jobs=3)
    with pytest.raises(InputError, match="are for --engine ray"):
        engine_of("local", ray_cores=2)


# Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray of this machine that says it has two cores: two workers of one core each."""
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed: pip install 'rvos[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{HERE}:{HERE.parents[1]}")
        ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield ray
        ray.shutdown()


def on_ray(tmp_path: Path, name: str, videos: int = 8, tracker: str = TRACKER, **overrides: object) -> Any:
    engine = engine_of("ray", ray_cores=1)
    return extract(TINY, tmp_path / str(videos), "train", tracker, tmp_path / name, overrides=overrides, engine=engine)


def alone(tmp_path: Path, videos: int = 8, tracker: str = TRACKER, **overrides: object) -> str:
    out = tmp_path / "alone.zarr"
    extract(TINY, tmp_path / str(videos), "train", tracker, out, overrides=overrides)
    return content_digest(out)


def test_ray_makes_the_cache_of_one_process(tmp_path: Path, cluster: Any) -> None:
    report = on_ray(tmp_path, "r.zarr", bad="v03", wait=0.05)
    assert (sorted(report.done), set(report.failed)) == ([f"v0{i}" for i in (0, 1, 2, 4, 5, 6, 7)], {"v03"})
    assert "v03/00002.jpg: truncated" in report.failed["v03"]
    assert content_digest(tmp_path / "r.zarr") == alone(tmp_path, bad="v03", wait=0.05)
    assert list(verify(tmp_path / "r.zarr")) == [] and not list((tmp_path / "r.zarr/.staging").iterdir())
    assert set(TrackCache(tmp_path / "r.zarr").failures()) == {"v03"}
    again = on_ray(tmp_path, "r.zarr", bad="v03", wait=0.05)
    assert len(again.skipped) == 7 and list(again.failed) == ["v03"]


def test_the_video_of_a_killed_worker_is_tried_again(tmp_path: Path, cluster: Any) -> None:
    (tmp_path / "graves").mkdir()
    dies = {"dies": "v02", "graves": str(tmp_path / "graves")}
    report = on_ray(tmp_path, "r.zarr", tracker=DYING, **dies)
    assert len(list((tmp_path / "graves").iterdir())) == 1 and len(report.done) == 8 and not report.failed
    assert content_digest(tmp_path / "r.zarr") == alone(tmp_path, tracker=DYING, **dies)
    assert list(verify(tmp_path / "r.zarr")) == []


def test_a_video_that_kills_every_worker_fails_and_the_run_goes_on(tmp_path: Path, cluster: Any) -> None:
    (tmp_path / "graves").mkdir()
    report = on_ray(tmp_path, "r.zarr", tracker=DYING, dies="v02", lives=99, graves=str(tmp_path / "graves"))
    assert report.failed == {"v02": "its worker died 3 times (out of memory?); see the logs of the cluster"}
    assert len(list((tmp_path / "graves").iterdir())) == 3 and len(report.done) == 7
    assert set(TrackCache(tmp_path / "r.zarr").failures()) == {"v02"}


def test_a_worker_that_sees_another_folder_is_refused(tmp_path: Path) -> None:
    card = Card(kind="text", dataset="d", split="s", producer="p")
    here, there = (CacheWriter(tmp_path / name, card) for name in ("here.zarr", "there.zarr"))
    with here.backend.marker_file() as mark:
        assert CacheWriter.attach(here.backend.uri(), card, mark).published_ids() == set()
        with pytest.raises(InputError, match=r"there.zarr: .* cannot read what the machine that started the run wrote"):
            CacheWriter.attach(there.backend.uri(), card, mark)
    assert not list((tmp_path / "here.zarr/.staging").iterdir())


def test_workers_import_a_module_of_the_users_current_folder(tmp_path: Path, cluster: Any) -> None:
    """By the installed command, as a user runs it; the folder is on no import path."""
    shutil.copy(HERE.parent / "examples" / "corner_tracker.py", tmp_path)
    words = ["extract", "--dataset", TINY, "--root", "4", "--split", "train", "--tracker", "corner_tracker:CornerTracker"]
    address = cluster.get_runtime_context().gcs_address
    words += ["--out", "r.zarr", "--engine", "ray", "--ray-cores", "1", "--ray-address", address]
    env = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
    command = [str(Path(sys.executable).parent / "rvos-cache"), *words]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "r.zarr: 4 done, 0 were there, 0 failed\n"), done.stderr
    assert list(verify(tmp_path / "r.zarr")) == []


def test_what_a_cluster_cannot_give_is_said_in_one_line(tmp_path: Path, cluster: Any) -> None:
    where = (TINY, tmp_path / "3", "train", TRACKER, tmp_path / "r.zarr")
    with pytest.raises(InputError, match=r"has no GPU \(machines: 2 cores and 0 GPUs\); give --ray-cores"):
        extract(*where, engine=engine_of("ray"))
    with pytest.raises(InputError, match="has no machine with 3 cores"):
        extract(*where, engine=engine_of("ray", ray_cores=3))


def test_a_machine_without_the_dataset_or_with_other_weights_stops_the_run(tmp_path: Path, cluster: Any) -> None:
    """It would fail every video that it is given, or write what the card does not say."""
    engine, out = engine_of("ray", ray_cores=1), tmp_path / "a.zarr"
    with pytest.raises(InputError, match="is not on this machine") as caught:
        extract("engine_fixtures:Elsewhere", tmp_path, "train", TRACKER, out, engine=engine)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"weights.bin: \S+ has other weights"):
        on_ray(tmp_path, "b.zarr", tracker="engine_fixtures:Hashed")


@pytest.mark.timeout(60)
def test_no_cluster_is_said_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed: pip install 'rvos[ray]'")
    words = ["extract", "--dataset", TINY, "--root", str(tmp_path / "3"), "--split", "train", "--tracker", TRACKER]
    words += ["--out", str(tmp_path / "a.zarr"), "--engine", "ray", "--ray-cores", "1"]
    env = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "RAY_ADDRESS": "127.0.0.1:9"}
    code = "from rvos_cache.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: 127.0.0.1:9: no Ray cluster"), done.stderr


def test_who_answers_but_lets_nobody_in_may_want_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed: pip install 'rvos[ray]'")

    def refuse(**_: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        engine = engine_of("ray", ray_address=f"127.0.0.1:{listening.getsockname()[1]}", ray_cores=1)
        with pytest.raises(InputError, match=r"no Ray cluster \(Failed .*RAY_AUTH_MODE=token for a cluster that asks"):
            extract(TINY, tmp_path / "3", "train", TRACKER, tmp_path / "a.zarr", engine=engine)


# Plan


def test_the_sample_of_a_plan_is_spread_over_the_lengths() -> None:
    frames = {f"v{i}": 10 * i for i in (5, 3, 9, 1, 7, 2, 8, 4, 6)}
    assert spread(frames, 1) == ["v5"] and spread(frames, 3) == ["v2", "v5", "v8"]
    assert sorted(spread(frames, 99)) == sorted(frames)


def test_a_plan_scales_by_frames(tmp_path: Path) -> None:
    # Every video waits 0.05 s and has five frames, v01 one: the whole split has 9 * 5 + 1.
    plan = plan_work(TrackWork(TINY, tmp_path / "10", "train", TRACKER, {"wait": 0.05, "bad": "v05"}), 3)
    assert (plan.videos, plan.frames) == (10, 46) and set(plan.timed.values()) <= {1, 5}
    assert plan.fastest <= plan.seconds <= plan.slowest
    assert plan.seconds >= 0.05 * len(plan.timed) / sum(plan.timed.values()) * 46
    out = tmp_path / "whole.zarr"
    extract(TINY, tmp_path / "10", "train", TRACKER, out, overrides={"wait": 0.05})
    size_on_disk = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    assert 0.5 < plan.size / size_on_disk < 2
    with pytest.raises(InputError, match=r"of 1 videos tried none could be extracted; first v00/00002.jpg: truncated"):
        plan_work(TrackWork(TINY, tmp_path / "1", "train", TRACKER, {"bad": "v00"}), 3)


def test_the_plan_command_names_machine_and_jobs(tmp_path: Path) -> None:
    words = ["plan", "--dataset", TINY, "--root", str(tmp_path / "5"), "--split", "train", "--tracker", TRACKER, "--jobs", "2"]
    output = CliRunner().invoke(cli, words).output
    assert output.startswith("5 videos, 21 frames\n") and platform.node() in output and "2 jobs" in output, output
