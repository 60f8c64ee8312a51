"""Caches at s3:// URLs, on a local S3 server: published once, read like a folder, resumed after kills, refused if unsafe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from rvos_cache.cli import cli
from rvos_cache.errors import InputError
from rvos_cache.extraction import extract, extract_text
from rvos_cache.store import CacheWriter, Card, TrackCache, content_digest, leftovers, open_backend, read_card, verify
from rvos_cache.store.object_backend import ObjectBackend
from rvos_cache.store.staging import HOST, VIDEO_LIFETIME
from rvos_select.data.caches import TrackSource
from rvos_select.data.texts import TextSource, find_text, texts_of

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from s3_server import BUCKET, s3_server  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("on_cpu")]  # processes of --jobs are forked

TINY, TRACKER = "store_fixtures:Tiny", "store_fixtures:TinyTracker"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from s3fs import S3FileSystem

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        with s3_server() as url:
            patch.setenv("AWS_ENDPOINT_URL", url)
            yield url
            S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(server: str) -> Any:
    """The file system, to read and change objects without the store."""
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False)


@pytest.fixture
def out(server: str, request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{request.node.name}.zarr"


def run(tmp_path: Path, out: Path | str, count: int = 3, **options: Any) -> Any:
    return extract(TINY, tmp_path / str(count), "train", TRACKER, out, **options)


def spawn(tmp_path: Path, out: str, videos: int, *more: str) -> subprocess.Popen[bytes]:
    arguments = ["extract", "--dataset", TINY, "--root", str(tmp_path / str(videos)), "--split", "train"]
    arguments += ["--tracker", TRACKER, "--out", out, *more]
    env = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
    code = "from rvos_cache.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=env, stdout=-3, stderr=subprocess.PIPE)


def test_a_cache_at_a_url_is_the_cache_in_a_folder(tmp_path: Path, out: str, s3: Any) -> None:
    folder = tmp_path / "a.zarr"
    for path in (folder, out):
        report = run(tmp_path, path, overrides={"bad": "v00"})
        assert (report.done, set(report.failed)) == (["v01", "v02"], {"v00"})
    # Every command takes a Path, which drops one of the two slashes.
    for path in (out, Path(out)):
        cache = TrackCache(path)
        assert cache.failures() == TrackCache(folder).failures() and cache.video_ids() == ("v01", "v02")
        assert content_digest(path) == content_digest(folder) and list(verify(path)) == []
        tokens = TrackSource([path]).tokens("v01")
        np.testing.assert_array_equal(tokens, TrackCache(folder).tokens("v01"))
    assert sorted(name.rpartition("/")[2] for name in s3.ls(out)) == ["attempts", "card.json", "commits", "failures"]
    second = run(tmp_path, out, overrides={"bad": "v00"})
    assert second.skipped == ["v01", "v02"] and list(second.failed) == ["v00"]
    with pytest.raises(InputError, match="settings.size = 4, now it is 5"):
        run(tmp_path, out, overrides={"bad": "v00", "size": 5})


def test_the_commands_take_a_url(tmp_path: Path, out: str) -> None:
    options = ["--dataset", TINY, "--root", str(tmp_path / "3"), "--split", "train", "--tracker", TRACKER]
    result = CliRunner().invoke(cli, ["extract", *options, "--out", out, "--jobs", "2"])
    assert result.exit_code == 0 and f"{out}: 3 done" in result.output, result.output
    facts = json.loads(CliRunner().invoke(cli, ["info", out, "--json"]).output)
    assert facts["done"] == 3 and facts["content"] == content_digest(out) and facts["missing"] == []
    assert facts["bytes"] > 1000
    assert CliRunner().invoke(cli, ["verify", out]).output == "no fault\n"


def test_only_committed_videos_are_read(tmp_path: Path, out: str, s3: Any) -> None:
    run(tmp_path, out)
    s3.rm_file(f"{out}/commits/v02.json")
    assert TrackCache(out).video_ids() == ("v00", "v01") and list(verify(out)) == []
    with pytest.raises(InputError, match=r"commits/v02.json: this video is not in the cache"):
        TrackCache(out).tokens("v02")
    run(tmp_path, out)
    assert TrackCache(out).tokens("v02").shape == (3, 5, 4)
    # The staging without a commit belongs to this process, which is alive.
    assert list(leftovers(out)) == []


def test_damage_is_found_and_not_read(tmp_path: Path, out: str, s3: Any) -> None:
    run(tmp_path, out, videos=["v01"])
    attempt = json.loads(s3.cat_file(f"{out}/commits/v01.json"))["attempt"]
    tokens = f"attempts/{attempt}/tokens/c/0/0/0"
    for file in (tokens, f"attempts/{attempt}/zarr.json", "commits/v01.json", "card.json"):
        raw = s3.cat_file(f"{out}/{file}")
        s3.pipe_file(f"{out}/{file}", raw[:9] + bytes([raw[9] ^ 1]) + raw[10:])
        assert any(file in fault for fault in verify(out)), file
        with pytest.raises(InputError, match=file):
            TrackCache(out).tokens("v01")
        s3.pipe_file(f"{out}/{file}", raw)
    raw = s3.cat_file(f"{out}/{tokens}")
    s3.rm_file(f"{out}/{tokens}")
    assert len([fault for fault in verify(out) if f"{tokens}: missing" in fault]) == 1
    s3.pipe_file(f"{out}/{tokens}", raw)
    foreign_names = ("note.txt", f"attempts/{attempt}/extra", "attempts/what/x", "commits/v01", "failures/note")
    for name in foreign_names:
        s3.pipe_file(f"{out}/{name}", b"x")
    foreign = {fault.split(": ")[0] for fault in verify(out) if "does not belong here" in fault}
    assert foreign == {f"{out}/{name.removesuffix('/x')}" for name in foreign_names}
    for name in foreign_names:
        s3.rm_file(f"{out}/{name}")
    assert list(verify(out)) == []
    s3.pipe_file(f"{out}/failures/0.json", b"{}")
    assert [fault for fault in verify(out) if "failures/0.json: not a failure record" in fault]


def test_two_writers_at_once(tmp_path: Path, out: str, s3: Any) -> None:
    started = [spawn(tmp_path, out, 5) for _ in range(2)]
    messages = [process.communicate(timeout=100)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], messages
    assert not any("error" in message for message in messages), messages
    run(tmp_path, tmp_path / "a.zarr", 5)
    assert content_digest(out) == content_digest(tmp_path / "a.zarr") and list(verify(out)) == []
    # The second writer of a video has removed its files.
    assert len(s3.ls(f"{out}/attempts")) == 5 == len(s3.ls(f"{out}/commits"))


@pytest.mark.parametrize("request_name", ["modified", "rm_file"])
def test_what_another_writer_removes_at_this_moment_is_no_error(request_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that starts has listed the probe of another one, or a staging that is too old, when that is removed."""
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(MemoryFileSystem, "store", {})
    backend = ObjectBackend("memory://caches/a.zarr")
    backend.create(b"{}")
    removed = f"/caches/a.zarr/attempts/probe.elsewhere.1.{'1' * 32}/probe"
    fs = MemoryFileSystem()
    fs.pipe_file(removed, b"1")
    request, now = getattr(MemoryFileSystem, request_name), time.time

    def late(fs: MemoryFileSystem, path: str) -> Any:
        if path == removed:
            del MemoryFileSystem.store[removed]
        return request(fs, path)

    monkeypatch.setattr(MemoryFileSystem, request_name, late)
    if request_name == "rm_file":
        monkeypatch.setattr("rvos_cache.store.staging.time.time", lambda: now() + VIDEO_LIFETIME + 60)
    backend.open_for_writing()
    assert not fs.exists(removed)


def test_of_two_publishers_of_a_video_the_first_wins(tmp_path: Path, out: str) -> None:
    run(tmp_path, out, 1)
    writers = [CacheWriter(out, read_card(out)) for _ in range(2)]
    arrays = [{"tokens": np.full((1, 2, 4), value, np.float16)} for value in (1, 2)]
    assert [writer.publish("new", array, {}) for writer, array in zip(writers, arrays)] == [True, False]
    assert TrackCache(out).folder("new").array("tokens").max() == 1


def test_killed_writers_leave_no_part_of_a_video(tmp_path: Path, out: str, s3: Any) -> None:
    killed = 0
    for wait in (0.0, 0.2):
        process = spawn(tmp_path, out, 6, "--set", "wait=0.1")
        start = time.monotonic()
        while not s3.exists(f"{out}/commits") and process.poll() is None and time.monotonic() - start < 60:
            time.sleep(0.02)
        time.sleep(wait)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert list(verify(out)) == []
    assert killed
    run(tmp_path, out, 6, overrides={"wait": 0.1})
    run(tmp_path, tmp_path / "a.zarr", 6, overrides={"wait": 0.1})
    assert content_digest(out) == content_digest(tmp_path / "a.zarr")


def test_stagings_without_a_commit_are_removed_after_a_day(tmp_path: Path, out: str, s3: Any, monkeypatch: Any) -> None:
    """Of another machine or of a dead process of this one: the files of a live writer must be there when it commits."""
    run(tmp_path, out, 2)
    names = [f"{out}/attempts/v01.{host}.999999999.{'1' * 32}" for host in ("elsewhere", HOST)]
    for name in names:
        s3.pipe_file(f"{name}/zarr.json", b"{")
    run(tmp_path, out, 2)
    assert all(map(s3.exists, names)) and list(leftovers(out)) == [] and list(verify(out)) == []
    now, before = time.time, content_digest(out)
    monkeypatch.setattr("rvos_cache.store.staging.time.time", lambda: now() + VIDEO_LIFETIME + 60)
    assert [note.split(": left")[0] for note in leftovers(out)] == sorted(names)
    run(tmp_path, out, 2)
    assert len(s3.ls(f"{out}/attempts")) == 2 and list(verify(out)) == [] and content_digest(out) == before


@pytest.mark.parametrize("seconds", [VIDEO_LIFETIME / 2 - 60, VIDEO_LIFETIME / 2 + 60])
def test_an_upload_of_more_than_half_a_day_is_not_committed(out: str, monkeypatch: Any, seconds: float) -> None:
    writer = CacheWriter(out, Card(kind="text", dataset="d", split="s", producer="p"))
    times = iter((time.time(), time.time() + seconds))
    monkeypatch.setattr("rvos_cache.store.object_backend.time", SimpleNamespace(time=lambda: next(times)))
    if seconds < VIDEO_LIFETIME / 2:
        assert writer.publish("v", {"a": np.zeros(3, np.float32)}, {}) and writer.published_ids() == {"v"}
    else:
        with pytest.raises(OSError, match="half a day"):
            writer.publish("v", {"a": np.zeros(3, np.float32)}, {})
        assert writer.published_ids() == set()


def test_verify_fetches_each_file_once(tmp_path: Path, out: str, s3: Any, monkeypatch: Any) -> None:
    import fsspec

    fetched: list[str] = []

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return getattr(s3, name)

        def cat_file(self, path: str) -> bytes:
            fetched.append(path)
            return bytes(s3.cat_file(path))

    run(tmp_path, out, 2)
    monkeypatch.setattr(fsspec, "filesystem", lambda *a, **k: Counted())
    assert list(verify(out)) == []
    files = [path for path in fetched if not path.endswith("card.json")]
    assert sorted(files) == sorted(path for path in s3.find(out) if not path.endswith("card.json"))


def test_the_text_cache_next_to_a_tracks_cache_is_found_at_a_url(tmp_path: Path, server: str, s3: Any) -> None:
    """Only of the same dataset and split; the error has the URL with both slashes."""
    base = f"s3://{BUCKET}/beside"
    run(tmp_path, f"{base}/tracks.zarr", 1)
    with pytest.raises(InputError, match=rf"^{base}/tracks.zarr: expected one text cache of {TINY} train next to it, found none"):
        find_text(Path(f"{base}/tracks.zarr"))
    extract_text(TINY, tmp_path / "1", "train", "hashed", Path(f"{base}/text-hashed.zarr"))
    extract_text(TINY, tmp_path / "1", "valid", "hashed", Path(f"{base}/other.zarr"))
    s3.pipe_file(f"{base}/foreign.zarr/x", b"x")
    text_paths = texts_of([Path(f"{base}/tracks.zarr")], [])
    assert [text.card.split for text in TextSource(text_paths).caches] == ["train"] and len(text_paths) == 1
    with pytest.raises(InputError, match=rf"^{base}/text-hashed.zarr: no words of video v09"):
        TextSource(text_paths).words("v09")
    extract_text(TINY, tmp_path / "1", "train", "hashed", Path(f"{base}/again.zarr"))
    with pytest.raises(InputError, match=f"found {base}/again.zarr, {base}/text-hashed.zarr; give --text"):
        find_text(Path(f"{base}/tracks.zarr"))


class WithoutConditions:
    """An S3 file system whose server has no conditional puts: it ignores the condition, or raises an error for it."""

    def __init__(self, inner: Any, error: Exception | None) -> None:
        self.inner, self.error = inner, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create" and self.error is not None:
            raise self.error
        self.inner.pipe_file(path, value)


@pytest.mark.parametrize("error", [None, OSError("A header you provided implies functionality that is not implemented")])
def test_a_store_without_conditional_puts_is_refused(tmp_path: Path, out: str, s3: Any, error: Any, monkeypatch: Any) -> None:
    import fsspec

    monkeypatch.setattr(fsspec, "filesystem", lambda *a, **k: WithoutConditions(s3, error))
    with pytest.raises(
        (InputError, OSError), match="overwrites in spite of If-None-Match" if error is None else "not implemented"
    ):
        run(tmp_path, out)
    assert s3.find(out) == []


def test_a_commit_that_the_client_repeats_is_ours(tmp_path: Path, out: str, s3: Any, monkeypatch: Any) -> None:
    """The client repeats the put, which fails because of the first: removing the files then would lose the video."""
    import fsspec

    class RepeatsPuts(WithoutConditions):
        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
            self.inner.pipe_file(path, value, mode=mode)
            if "/commits/" in path:
                self.inner.pipe_file(path, value, mode=mode)

    monkeypatch.setattr(fsspec, "filesystem", lambda *a, **k: RepeatsPuts(s3, None))
    assert len(run(tmp_path, out).done) == 3 and list(verify(out)) == []
    assert len(s3.ls(f"{out}/attempts")) == 3


def test_unusable_urls_are_one_line(tmp_path: Path, server: str, s3: Any, monkeypatch: Any) -> None:
    s3.pipe_file(f"{BUCKET}/foreign.zarr/readme", b"x")
    with pytest.raises(InputError, match="holds 'readme' and is not a cache"):
        run(tmp_path, f"s3://{BUCKET}/foreign.zarr")
    with pytest.raises(InputError, match=r"s3://caches/none.zarr: no cache here"):
        TrackCache(f"s3://{BUCKET}/none.zarr")
    with pytest.raises(OSError, match="bucket does not exist") as caught:
        run(tmp_path, "s3://nowhere/a.zarr")
    assert caught.value.filename.startswith("s3://nowhere/a.zarr")
    with pytest.raises(InputError, match="no support for fax:// is installed"):
        open_backend("fax://x/a.zarr")
    type(s3).clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(OSError, match="connect"):
        ObjectBackend(f"s3://{BUCKET}/a.zarr").has_card()
    type(s3).clear_instance_cache()
