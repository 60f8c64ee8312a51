"""The spool of arrays, and the memory of the flow tracker on long videos."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_flow import texture

from rvos_cache.settings import build
from rvos_cache.trackers.flow import FlowSettings, FlowTracker
from rvos_cache.trackers.spool import ENTRY_BYTES, ArraySpool
from rvos_cache.types import TrackSet, Video


def test_arrays_come_back_as_they_were_assigned() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "float": rng.normal(size=(7, 3)).astype(np.float16),
        ("bool", 1): rng.random((5, 7, 3)) > 0.5,
        ("bool", 2): np.zeros((0, 4), bool),
        "transposed": np.arange(12).reshape(3, 4).T,
        "scalar": np.float32(3)[()] * np.ones((), np.float32),
        "bytes": np.frombuffer(b"some bytes", np.uint8),
    }
    for in_memory in (0, 2 * ENTRY_BYTES + 60, 1 << 20):
        spool = ArraySpool(in_memory)
        for key, array in arrays.items():
            spool[key] = array
        # Twice and in another order, so that arrays are evicted and loaded again.
        for key in [*arrays, *reversed(arrays), *arrays]:
            assert key in spool
            assert spool[key].dtype == arrays[key].dtype and np.array_equal(spool[key], arrays[key])
            with pytest.raises(ValueError, match="read-only"):
                spool[key][...] = 0
        assert "missing" not in spool
        with pytest.raises(KeyError):
            spool["missing"]


def test_an_array_can_be_replaced_and_removed() -> None:
    for in_memory in (0, 1 << 20):
        spool = ArraySpool(in_memory)
        for value in range(3):
            spool["a"] = np.full(10, value)
            spool["b"] = np.full(4, 10 + value, np.int8)
            assert spool["a"].tolist() == [value] * 10 and spool["b"].tolist() == [10 + value] * 4
        spool.pop("a")
        spool.pop("a")
        assert "a" not in spool and "b" in spool
        with pytest.raises(KeyError):
            spool["a"]


def test_a_spool_keeps_the_most_recently_used_arrays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = ArraySpool(3 * (1000 + ENTRY_BYTES))
    for t in range(3):
        spool[t] = np.full(1000, t, np.uint8)
    opened: list[object] = []
    real = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: opened.append(options) or real(**options))
    assert spool[0][0] == 0 and not opened
    spool[3] = np.full(1000, 3, np.uint8)
    # Array 1 is the least recently used one.
    assert len(opened) == 1 and set(spool._arrays) == {0, 2, 3}
    assert spool[1][0] == 1 and spool._bytes <= spool.in_memory
    # The file has no name, so nothing is left after a crash.
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_folder_of_the_temporary_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, offset: int) -> None: ...

        def write(self, data: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: Full())
    spool = ArraySpool(0)
    spool["a"] = np.zeros(3)
    with pytest.raises(OSError, match="No space left on device") as caught:
        spool["b"] = np.zeros(3)
    assert caught.value.filename == tempfile.gettempdir()


def moving_patch(frames: int, size: tuple[int, int] = (130, 170)) -> Video:
    """A textured patch that moves over a textured background."""
    background = texture(size[0], size[1])
    patch = texture(30, 30)[::-1] * [1.5, 0.7, 0.6]

    def read(t: int) -> NDArray[np.uint8]:
        picture = background.copy()
        x, y = 20 + 2 * t % 110, 40 + t // 55 * 10 % 50
        picture[y : y + 30, x : x + 30] = patch
        return np.clip(picture, 0, 255).astype(np.uint8)

    return Video("patch", tuple(f"{t:05d}" for t in range(frames)), size, read)


def squares(frames: int, size: tuple[int, int] = (96, 160)) -> Video:
    """Two squares that move over a plain background."""

    def read(t: int) -> NDArray[np.uint8]:
        picture = np.full((*size, 3), 110, np.uint8)
        picture[20:40, 10 + t % 90 : 30 + t % 90] = (215, 40, 40)
        picture[60:80, 130 - t % 90 : 150 - t % 90] = (45, 85, 225)
        return picture

    return Video("squares", tuple(f"{t:05d}" for t in range(frames)), size, read)


def track(video: Video, mode: str) -> TrackSet:
    settings = {"mode": mode, "key_frames": 2, "prompts_per_key": 3}
    return FlowTracker(build(FlowSettings, settings, "test")).track(video, ())


def limit(monkeypatch: pytest.MonkeyPatch, in_memory: int) -> None:
    monkeypatch.setattr("rvos_cache.trackers.flow.motion.IN_MEMORY", in_memory)
    monkeypatch.setattr("rvos_cache.trackers.flow.tracker.SMALL_IN_MEMORY", in_memory)


@pytest.mark.parametrize(("mode", "make"), [("full", moving_patch), ("small", squares)])
def test_tracks_do_not_depend_on_what_is_kept_in_memory(
    mode: str, make: Callable[[int], Video], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = track(make(9), mode)
    limit(monkeypatch, 1)
    monkeypatch.setattr("rvos_cache.trackers.flow.small.COMPONENT_BYTES", 1)
    monkeypatch.setattr("rvos_cache.trackers.flow.small_tracks.ENCODED_PIXELS", 1)
    monkeypatch.setattr("rvos_cache.trackers.flow.full.ENCODED_PIXELS", 1)
    monkeypatch.setattr("rvos_cache.trackers.flow.stitching.CANDIDATES_PER_PASS", 1)
    tracks = track(make(9), mode)
    assert len(tracks.origin) >= 2 and tracks.masks == expected.masks
    for name in ("tokens", "presence", "prompt_frame", "prompt_box"):
        assert np.array_equal(getattr(tracks, name), getattr(expected, name)), name


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "make"), [("full", moving_patch), ("small", squares)])
def test_memory_does_not_grow_with_the_frames_of_a_video(
    mode: str, make: Callable[[int], Video], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the tracks themselves, whose tokens are 512 bytes per track and frame."""
    limit(monkeypatch, 1 << 20)
    monkeypatch.setattr("rvos_cache.trackers.flow.small.COMPONENT_BYTES", 1 << 17)
    monkeypatch.setattr("rvos_cache.trackers.flow.small_tracks.ENCODED_PIXELS", 1 << 17)
    peaks = []
    for frames in (20, 60):
        video = make(frames)
        first = video.read(0)
        tracemalloc.start()
        tracks = track(video, mode)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    flow_of_a_frame = first[..., 0].size * 2 * 2 * 2
    per_frame = (peaks[1] - peaks[0]) / 40
    assert per_frame < 3000 * len(tracks.origin) + 8000 < flow_of_a_frame


def test_planned_memory_grows_with_the_tracks_of_a_frame_alone() -> None:
    """A film of 260 x 250: a fixed part that does not depend on the length, and at most 100 KB for each frame's 64 tracks."""
    tracker = FlowTracker(FlowSettings())
    planned = [tracker.planned_memory((250, 260), frames) for frames in (500, 1000, 2000)]
    assert planned[2] - planned[1] == 2 * (planned[1] - planned[0]) == 1000 * (planned[1] - planned[0]) / 500
    assert (planned[1] - planned[0]) / 500 < 110_000 and planned[2] < 320 << 20
    assert tracker.planned_memory((1080, 1920), 500) > planned[0] > tracker.planned_memory((96, 160), 40) > 0
    few = FlowTracker(FlowSettings(max_tracks=4, prompts_per_key=2))
    assert few.planned_memory((250, 260), 2000) < planned[2] / 2
