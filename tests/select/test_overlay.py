"""The overlay of `ask`: as long and as upright as the video it shows."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from film_fixtures import Matrix, quarters, write_film
from PIL import Image

from rvos_cache.media.frames import open_video
from rvos_cache.media.mask_png import write_mask_png
from rvos_select.inference.ask import FRAMES_PER_SECOND, draw

TURNED: Matrix = (0, 1 << 16, -1 << 16, 0)


def overlay(video: Path, out: Path) -> tuple[Fraction, tuple[int, int], np.ndarray]:
    """The rate, the size (H, W) and the last frame of the overlay with empty masks."""
    frames = open_video(video)
    for name in frames.frame_names:
        write_mask_png(out / f"{name}.png", np.zeros(frames.size, bool))
    with av.open(str(draw(frames, out, out / "overlay.mp4"))) as film:
        stream = film.streams.video[0]
        pixels = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
        assert len(pixels) == len(frames)
        return stream.average_rate, (stream.height, stream.width), pixels[-1]


@pytest.mark.parametrize("rate", [25, Fraction(30000, 1001), 60])
def test_a_film_keeps_its_rate(tmp_path: Path, rate: int | Fraction) -> None:
    path = write_film(tmp_path / "film.mp4", [quarters()] * 10, rate)
    assert overlay(path, tmp_path / "out")[:2] == (rate, (48, 64))


def test_a_film_is_upright(tmp_path: Path) -> None:
    """A turn to the right brings the red top left to the top right, and the blue below left to the top left."""
    path = write_film(tmp_path / "film.mp4", [quarters()] * 4, matrix=TURNED)
    rate, size, pixels = overlay(path, tmp_path / "out")
    assert (rate, size) == (25, (64, 48))
    assert pixels[10, 10].argmax() == 2 and pixels[10, -10].argmax() == 0 and pixels[-10, -10].argmax() == 1


def test_a_folder_has_the_default_rate(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for t in range(3):
        Image.fromarray(quarters((31, 33))).save(tmp_path / f"v/{t}.png")
    assert overlay(tmp_path / "v", tmp_path / "out")[:2] == (FRAMES_PER_SECOND, (32, 34))
