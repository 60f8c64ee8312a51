"""Films: their rate, what is read of them, and one line for what cannot be read right."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from film_fixtures import quarters, write_film

from rvos_cache.errors import InputError
from rvos_cache.media.films import VideoWriter, file_video
from rvos_cache.media.frames import open_video

NTSC = Fraction(30000, 1001)


def clip(count: int = 20) -> list[np.ndarray]:
    return [np.roll(quarters(), 2 * t, axis=1) for t in range(count)]


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.MP4", "libx264", Fraction(25)),
        ("a.mov", "libx264", NTSC),
        ("a.mkv", "libx264", Fraction(24000, 1001)),
        ("a.avi", "mpeg4", Fraction(30)),
        ("a.webm", "libvpx-vp9", Fraction(25)),
        ("a.m4v", "libx264", Fraction(60)),
        ("a.mpg", "mpeg2video", Fraction(25)),
        ("a.ts", "libx264", Fraction(50)),
        ("a.wmv", "wmv2", Fraction(25)),
        ("a.3gp", "mpeg4", Fraction(15)),
    ],
)
def test_frames_and_rate_of_every_usual_film(tmp_path: Path, name: str, codec: str, rate: Fraction) -> None:
    containers = {"MP4": "mp4", "m4v": "mp4"}
    path = write_film(tmp_path / name, clip(), rate, codec, container=containers.get(name.split(".")[1]))
    video = open_video(path)
    assert (len(video), video.size, video.rate) == (20, (48, 64), rate)
    film = cv2.VideoCapture(str(path))
    expected = [film.read()[1][..., ::-1].astype(int) for _ in range(20)]
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(float(rate), rel=1e-3)
    assert all(np.median(np.abs(video.read(t) - expected[t])) <= 2 for t in range(20))


def test_the_overlay_is_written_at_the_rate_of_the_film(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", NTSC, (48, 64)) as writer:
        for frame in clip():
            writer.write(frame)
    with av.open(str(tmp_path / "out.mp4")) as film:
        assert film.streams.video[0].average_rate == NTSC
        times = [frame.pts * frame.time_base for frame in film.decode(video=0)]
    assert times == [t / NTSC for t in range(20)]


def test_a_film_of_one_frame_has_the_rate_of_its_container(tmp_path: Path) -> None:
    assert open_video(write_film(tmp_path / "a.mp4", clip(1), 25)).rate == 25


def test_jitter_changes_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """A phone's times, within a few milliseconds of 25 frames per second."""
    times = [40 * t + (0, 3, 1, 2)[t % 4] for t in range(20)]
    assert float(open_video(write_film(tmp_path / "a.mp4", clip(), milliseconds=times)).rate or 0) == pytest.approx(25, rel=0.01)
    assert not recwarn.list


def test_the_rate_of_uneven_frames_is_their_mean(tmp_path: Path) -> None:
    """Twenty frames from 0 to 1 second, of which one is shown for 280 ms: the overlay is as long as the film."""
    times = [0, 40, 80, 120, *range(400, 1001, 40)]
    path = write_film(tmp_path / "a.mp4", clip(), milliseconds=times)
    with pytest.warns(UserWarning, match=r"a\.mp4: its frames are shown for 0\.04 to 0\.28 seconds, and are read as if"):
        assert open_video(path).rate == 19


def of_two_sizes(path: Path) -> None:
    parts = [write_film(path.with_name(f"{i}.ts"), [quarters(size)] * 4) for i, size in enumerate(((48, 64), (32, 64)))]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))


HALF = [np.dstack([frame, np.full((48, 64), 128, np.uint8)]) for frame in clip(3)]
REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "transparent webm": ("webm", lambda p: write_film(p, HALF, 25, "libvpx-vp9", "yuva420p"), "transparent pixels"),
    "transparent mov": ("mov", lambda p: write_film(p, HALF, 25, "qtrle", "argb"), "transparent pixels"),
    "ProRes 4444": ("mov", lambda p: write_film(p, HALF, 25, "prores_ks", "yuva444p10le"), "transparent pixels"),
    "two sizes": ("ts", of_two_sizes, r"frame 4: \(32, 64\) pixels \(height, width\), the first frame has \(48, 64\)"),
    "a text": ("mp4", lambda p: p.write_text("hello"), "cannot be decoded as a video"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_film_without_one_right_reading_is_one_line(tmp_path: Path, kind: str) -> None:
    ending, write, message = REFUSED[kind]
    path = tmp_path / f"film.{ending}"
    write(path)
    with pytest.raises(InputError, match=message) as error:
        open_video(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_an_opaque_film_with_an_alpha_channel_is_read(tmp_path: Path) -> None:
    frames = [np.dstack([frame, np.full((48, 64), 255, np.uint8)]) for frame in clip(3)]
    video = open_video(write_film(tmp_path / "a.mov", frames, 25, "qtrle", "argb"))
    assert np.array_equal(video.read(2), clip(3)[2])  # qtrle is lossless


def test_a_film_of_high_dynamic_range_is_told(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", clip(3), pix_fmt="yuv420p10le", color_trc=16, color_primaries=9, colorspace=9)
    with pytest.warns(UserWarning, match=r"a\.mp4: a film of high dynamic range \(PQ\), read as it is"):
        video = open_video(path)
    assert len(video) == 3


def test_pixels_that_are_not_square_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_film(path, clip(3), sample_aspect_ratio=Fraction(16, 15))
    with pytest.warns(UserWarning, match=r"a\.mp4: its pixels are not square \(16/15\)"):
        assert open_video(path).size == (48, 64)


def test_a_film_that_ends_before_its_length_is_told(tmp_path: Path) -> None:
    """A matroska file plays as far as it goes."""
    path = write_film(tmp_path / "a.mkv", clip(60))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"a\.mkv: 2\.4 seconds long, and its frames end .* seconds before"):
        assert len(open_video(path)) < 50


def test_a_cover_is_not_the_film(tmp_path: Path) -> None:
    """The first stream of the file is a picture, as in films with a cover."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as film:
        cover, stream = film.add_stream("mjpeg", rate=1), film.add_stream("libx264", rate=25)
        for s, pix_fmt, size in ((cover, "yuvj420p", (32, 32)), (stream, "yuv420p", (48, 64))):
            (s.height, s.width), s.pix_fmt = size, pix_fmt
        cover.disposition = av.stream.Disposition.attached_pic
        film.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        for frame in clip(5):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        film.mux(stream.encode())
    video = open_video(path)
    assert (len(video), video.size) == (5, (48, 64))


def test_times_are_read_with_little_memory(tmp_path: Path) -> None:
    """Frame 0 is decoded again after the last one; the rate is that of the whole film."""
    path = write_film(tmp_path / "a.mp4", clip(), NTSC)
    assert file_video(path, "a", cache_bytes=0).rate == NTSC
