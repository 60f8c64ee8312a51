"""The store against damage, kills, competing writers and bad places."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rvos_cache.errors import InputError
from rvos_cache.extraction import extract
from rvos_cache.store import TrackCache, content_digest, verify

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
TINY, TRACKER = "store_fixtures:Tiny", "store_fixtures:TinyTracker"


def run(tmp_path: Path, name: str, videos: int = 5, **options: object) -> Path:
    out = tmp_path / name
    extract(TINY, tmp_path / str(videos), "train", TRACKER, out, **options)  # type: ignore[arg-type]
    return out


def spawn(tmp_path: Path, out: Path, videos: int, *more: str) -> subprocess.Popen[bytes]:
    words = ["extract", "--dataset", TINY, "--root", str(tmp_path / str(videos)), "--split", "train"]
    words += ["--tracker", TRACKER, "--out", str(out), *more]
    code = "import sys; from rvos_cache.cli import main; sys.argv[0] = 'rvos-cache'; main()"
    env = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
    return subprocess.Popen([sys.executable, "-c", code, *words], env=env, stdout=-3, stderr=subprocess.PIPE)


def test_round_trip_and_shards(tmp_path: Path) -> None:
    whole, parts = run(tmp_path, "a.zarr"), tmp_path / "b.zarr"
    for shard in ("2/2", "1/2"):
        run(tmp_path, "b.zarr", shard=shard)
    cache = TrackCache(whole)
    assert [cache.info(v).tracks for v in cache.video_ids()] == [0, 3, 3, 3, 3]
    assert cache.info("v01").frames == 1 and cache.overlap("v02").inter.shape == (3, 0, 5)
    assert cache.info("v03").expressions[0].text == "собака идёт налево " * 200
    np.testing.assert_array_equal(cache.feature("v03", "map", slice(1, 3)), cache.feature("v03", "map")[1:3])
    assert content_digest(whole) == content_digest(parts) and list(verify(whole)) == []


def test_200_byte_flips_are_found(tmp_path: Path) -> None:
    out = run(tmp_path, "a.zarr", overrides={"bad": "v04"})
    files, rng = sorted(p for p in out.rglob("*") if p.is_file()), np.random.default_rng(0)
    assert {"card.json", "failures.jsonl", "digests.json"} <= {p.name for p in files}
    for _ in range(200):
        path = files[rng.integers(len(files))]
        raw = path.read_bytes()
        torn = bytearray(raw)
        torn[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
        path.write_bytes(torn)
        assert next(verify(out), None), path
        path.write_bytes(raw)
    assert list(verify(out)) == []


def test_missing_and_foreign_files_are_found_and_not_read(tmp_path: Path) -> None:
    out = run(tmp_path, "a.zarr")
    (out / "videos/v03/tokens/c/0/0/0").unlink()
    (out / "videos/v02/extra").write_text("x")
    assert len(list(verify(out))) == 2
    with pytest.raises(InputError, match="delete the folder"):
        TrackCache(out).tokens("v03")


def test_a_bad_video_stops_no_other(tmp_path: Path) -> None:
    report = extract(TINY, tmp_path / "5", "train", TRACKER, tmp_path / "a.zarr", overrides={"bad": "v01", "nan": "v03"})
    assert set(report.failed) == {"v01", "v03"} and len(report.done) == 3
    assert set(TrackCache(tmp_path / "a.zarr").failures()) == {"v01", "v03"}


def test_another_card_names_the_setting(tmp_path: Path) -> None:
    run(tmp_path, "a.zarr")
    with pytest.raises(InputError, match="settings.size = 4, now it is 5"):
        run(tmp_path, "a.zarr", overrides={"size": 5})


def test_a_stop_leaves_a_resumable_state(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "a.zarr", overrides={"stop": "v02"})
    assert TrackCache(tmp_path / "a.zarr").video_ids() == ("v00", "v01")


def test_kills_then_a_rerun(tmp_path: Path) -> None:
    kills, out = int(os.environ.get("RVOS_KILLS", "2")), tmp_path / "k.zarr"
    wanted = content_digest(run(tmp_path, "a.zarr", 30, overrides={"wait": 0.02}))
    rng = np.random.default_rng(1)
    for _ in range(kills):
        process = spawn(tmp_path, out, 30, "--set", "wait=0.02")
        start = time.monotonic()
        while not (out / "card.json").exists() and process.poll() is None and time.monotonic() - start < 60:
            time.sleep(0.01)
        time.sleep(float(rng.random()))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists() or list(verify(out)) == []
        if out.exists() and len(TrackCache(out).video_ids()) == 30:
            shutil.rmtree(out)
    run(tmp_path, "k.zarr", 30, overrides={"wait": 0.02})
    assert content_digest(out) == wanted and not list((out / ".staging").glob("v*"))


def test_four_writers(tmp_path: Path) -> None:
    out = tmp_path / "w.zarr"
    started = [spawn(tmp_path, out, 12) for _ in range(4)]
    assert [p.wait(120) for p in started] == [0] * 4
    assert content_digest(out) == content_digest(run(tmp_path, "a.zarr", 12)) and list(verify(out)) == []


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    process = spawn(tmp_path, tmp_path / "file" / "a.zarr", 3)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 1 and said.startswith("error: ") and said.count("\n") == 1
