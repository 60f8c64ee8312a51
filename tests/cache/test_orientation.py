"""Orientation of pictures (EXIF) and films (display matrix), against Pillow, OpenCV and FFmpeg's filters."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import av.filter
import cv2
import numpy as np
import pytest
from film_fixtures import Matrix, quarters, write_film
from PIL import Image, ImageOps

from rvos_cache.errors import InputError
from rvos_cache.media.films import file_video
from rvos_cache.media.frames import folder_video, open_video
from rvos_cache.media.images import image_size, is_turned, read_image
from rvos_cache.media.orientation import UPRIGHT, from_display_matrix

ONE = 1 << 16
FILTERS: dict[Matrix, list[tuple[str, str]]] = {
    (ONE, 0, 0, ONE): [],
    (0, ONE, -ONE, 0): [("transpose", "clock")],
    (-ONE, 0, 0, -ONE): [("hflip", ""), ("vflip", "")],
    (0, -ONE, ONE, 0): [("transpose", "cclock")],
    (-ONE, 0, 0, ONE): [("hflip", "")],
    (ONE, 0, 0, -ONE): [("vflip", "")],
    (0, ONE, ONE, 0): [("transpose", "cclock_flip")],
    (0, -ONE, -ONE, 0): [("transpose", "clock_flip")],
}
"""Display matrix -> the filters that the program `ffmpeg` inserts for it (fftools/ffmpeg_filter.c, autorotate)."""


def filtered(path: Path, filters: list[tuple[str, str]]) -> np.ndarray:
    """The first frame of a film after filters of FFmpeg, (H, W, 3)."""
    with av.open(str(path)) as film:
        frame = next(film.decode(video=0))
        graph = av.filter.Graph()
        nodes = [graph.add_buffer(template=film.streams.video[0])]
        nodes += [graph.add(name, argument) for name, argument in filters]
        nodes.append(graph.add("buffersink"))
        for node, other in zip(nodes, nodes[1:]):
            node.link_to(other)
        graph.configure()
        nodes[0].push(frame)
        return nodes[-1].pull().to_ndarray(format="rgb24")


def close(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures are equal but for the rounding of colours, and for their edges, where colours are stored in halves."""
    return one.shape == other.shape and np.median(np.abs(one.astype(int) - other.astype(int))) <= 2


@pytest.mark.parametrize("matrix", FILTERS)
def test_a_film_is_shown_as_ffmpeg_shows_it(tmp_path: Path, matrix: Matrix) -> None:
    path = write_film(tmp_path / "film.mp4", [quarters()] * 3, matrix=matrix)
    video, expected = open_video(path), filtered(path, FILTERS[matrix])
    assert video.size == expected.shape[:2]
    assert all(close(video.read(t), expected) for t in (2, 0))
    changed = expected.shape != quarters().shape or not close(expected, quarters())
    assert changed == (matrix != (ONE, 0, 0, ONE))
    stored = file_video(path, "film", upright=False)
    assert stored.size == (48, 64) and close(stored.read(0), quarters())


@pytest.mark.parametrize("matrix", list(FILTERS)[:4])
def test_a_film_is_turned_as_opencv_turns_it(tmp_path: Path, matrix: Matrix) -> None:
    path = write_film(tmp_path / "film.mp4", [quarters()] * 3, matrix=matrix)
    film = cv2.VideoCapture(str(path))
    film.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    assert close(open_video(path).read(0), film.read()[1][..., ::-1])


def test_a_film_turned_by_another_angle_is_one_line(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", [quarters()] * 3, matrix=(46341, 46341, -46341, 46341))
    with pytest.raises(InputError, match=r"film\.mp4: .* no multiple of 90 degrees; convert the film$"):
        open_video(path)


@pytest.mark.parametrize(
    ("a", "b", "c", "d", "expected"),
    [
        (3 * ONE, 0, 0, 2 * ONE, UPRIGHT),  # a scale, which FFmpeg ignores
        (ONE, 400, -400, ONE, UPRIGHT),  # a third of a degree
        (ONE, 4000, -4000, ONE, None),  # three degrees
        (0, 0, 0, 0, None),
        (ONE, 0, 0, 0, None),
    ],
)
def test_matrices_that_are_not_exact(a: int, b: int, c: int, d: int, expected: object) -> None:
    assert from_display_matrix(struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)) == expected


def photograph(path: Path, number: int, ending: str = "png") -> Path:
    tag = Image.Exif()
    tag[0x0112] = number
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(quarters((6, 8))).save(path.with_suffix(f".{ending}"), exif=tag)
    return path.with_suffix(f".{ending}")


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_photograph_is_turned_as_pillow_turns_it(tmp_path: Path, number: int, ending: str) -> None:
    path = photograph(tmp_path / "v/0", number, ending)
    with Image.open(path) as image:
        stored = np.asarray(image.convert("RGB"))
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(read_image(path, upright=True), expected)
    assert np.array_equal(read_image(path), stored)
    assert (image_size(path, upright=True), image_size(path)) == (expected.shape[:2], stored.shape[:2])
    assert is_turned(path) == (2 <= number <= 8)
    assert np.array_equal(open_video(tmp_path / "v").read(0), expected)
    assert np.array_equal(open_video(path).read(0), expected)


def test_frames_that_stay_as_stored_are_told(tmp_path: Path) -> None:
    photograph(tmp_path / "v/0", 6)
    with pytest.warns(UserWarning, match="v: its frames have an EXIF tag that turns them; they are read unturned"):
        video = folder_video(tmp_path / "v", "v", upright=False)
    assert np.array_equal(video.read(0), quarters((6, 8)))


def test_a_folder_of_both_orientations_is_one_line(tmp_path: Path) -> None:
    for t, number in enumerate((6, 1)):
        photograph(tmp_path / f"v/{t}", number)
    with pytest.raises(InputError, match=r"1\.png: \(6, 8\) pixels \(height, width\), the first frame 0\.png has \(8, 6\)"):
        open_video(tmp_path / "v").read(1)
