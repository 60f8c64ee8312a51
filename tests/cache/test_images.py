"""Frames of any bit depth and colour model: the pixels that OpenCV reads, or one line that names the file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from rvos_cache.errors import InputError
from rvos_cache.media.frames import folder_video
from rvos_cache.media.images import read_image

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (6, 8, 3), np.uint8)
BITS_16 = RANDOM.integers(0, 1 << 16, (6, 8, 3), np.uint16)
OPAQUE = np.full((6, 8, 1), 255, np.uint8)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def write_png(path: Path, values: np.ndarray, colour_type: int, extra: bytes = b"") -> None:
    """A PNG of uint8 or uint16 values (H, W, channels), written from its definition (ISO/IEC 15948)."""
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8 * values.itemsize, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(values.dtype.newbyteorder(">")).tobytes() for row in values)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> None:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)


READ: dict[str, tuple[str, Callable[[Path], object]]] = {
    "grey": ("png", lambda p: save(p, COLOURS[..., 0])),
    "one bit": ("png", lambda p: save(p, COLOURS[..., 0], "1")),
    "palette": ("png", lambda p: Image.fromarray(COLOURS).quantize(16).save(p)),
    "palette of two colours": ("png", lambda p: Image.fromarray(COLOURS).quantize(2).save(p)),
    "opaque palette": ("png", lambda p: Image.fromarray(COLOURS).quantize(16).save(p, transparency=200)),
    "opaque RGBA": ("png", lambda p: save(p, np.concatenate([COLOURS, OPAQUE], 2))),
    "opaque grey and alpha": ("png", lambda p: write_png(p, np.concatenate([COLOURS[..., :1], OPAQUE], 2), 4)),
    "a transparent colour that does not occur": ("png", lambda p: save(p, COLOURS | 1, transparency=(0, 0, 0))),
    "16 bits": ("png", lambda p: write_png(p, BITS_16[..., :1], 0)),
    "16 bits, colours": ("png", lambda p: write_png(p, BITS_16, 2)),
    "16 bits, opaque grey and alpha": (
        "png",
        lambda p: write_png(p, np.dstack([BITS_16[..., 0], OPAQUE[..., 0] * np.uint16(257)]), 4),
    ),
    "BMP in capitals": ("BMP", lambda p: save(p, COLOURS)),
    "WebP": ("webp", lambda p: save(p, COLOURS, lossless=True)),
}


@pytest.mark.parametrize("kind", sorted(READ))
def test_pixels_are_those_that_opencv_reads(tmp_path: Path, kind: str) -> None:
    ending, write = READ[kind]
    path = tmp_path / f"0.{ending}"
    write(path)
    expected = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert np.array_equal(read_image(path), expected[..., ::-1])
    assert np.ptp(read_image(path)) > 100
    assert np.array_equal(folder_video(tmp_path, "v").read(0), expected[..., ::-1])


def test_a_picture_for_print_is_close_to_opencv(tmp_path: Path) -> None:
    smooth = cv2.resize(COLOURS[:3, :4], (32, 24), interpolation=cv2.INTER_LINEAR)
    Image.fromarray(smooth).convert("CMYK").save(tmp_path / "0.jpg", quality=98)
    expected = cv2.imread(str(tmp_path / "0.jpg"))[..., ::-1].astype(int)
    assert np.abs(read_image(tmp_path / "0.jpg") - expected).max() <= 4
    assert np.abs(expected - smooth).mean() < 8


def test_the_first_picture_of_a_camera_file_is_the_frame(tmp_path: Path) -> None:
    """MPO: a JPEG with a preview or a gain map behind it."""
    preview = Image.fromarray(255 - COLOURS)
    Image.fromarray(COLOURS).save(tmp_path / "0.jpg", format="MPO", save_all=True, append_images=[preview], quality=95)
    assert np.array_equal(read_image(tmp_path / "0.jpg"), cv2.imread(str(tmp_path / "0.jpg"))[..., ::-1])


def animation(path: Path) -> None:
    Image.fromarray(COLOURS).save(path, save_all=True, append_images=[Image.fromarray(255 - COLOURS)])


HALF = np.full((6, 8, 1), 255, np.uint8)
HALF[2, 3] = 254
REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "RGBA": ("png", lambda p: save(p, np.concatenate([COLOURS, HALF], 2)), "transparent pixels"),
    "grey and alpha": ("png", lambda p: write_png(p, np.concatenate([COLOURS[..., :1], HALF], 2), 4), "transparent pixels"),
    "palette": ("png", lambda p: Image.fromarray(COLOURS).quantize(4).save(p, transparency=0), "transparent pixels"),
    "16 bits": ("png", lambda p: write_png(p, BITS_16[..., :1], 0, chunk(b"tRNS", b"\0\0")), "transparent pixels"),
    "WebP": ("webp", lambda p: save(p, np.concatenate([COLOURS, HALF], 2), lossless=True), "transparent pixels"),
    "animated PNG": ("png", animation, "holds 2 pictures, a frame is one"),
    "animated WebP": ("webp", animation, "holds 2 pictures, a frame is one"),
    "fractions": ("png", lambda p: save(p, COLOURS[..., 0].astype(np.float32) / 255, format="TIFF"), "pixels of 32 bits"),
    "32 bits": ("png", lambda p: save(p, COLOURS[..., 0].astype(np.int32) << 16, format="TIFF"), "pixels of 32 bits"),
    "HEIC": ("heic", lambda p: p.write_bytes(b"of a phone"), r"not a frame that is read \(\.jpg, .*\); convert or remove it"),
    "TIFF": ("TIF", lambda p: save(p, COLOURS, format="TIFF"), "not a frame that is read"),
    "GIF": ("gif", animation, "not a frame that is read"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_picture_without_one_right_frame_is_one_line(tmp_path: Path, kind: str) -> None:
    """Also behind a frame that can be read."""
    ending, write, message = REFUSED[kind]
    save(tmp_path / "0.png", COLOURS)
    write(tmp_path / f"1.{ending}")
    with pytest.raises(InputError, match=message) as error:
        folder_video(tmp_path, "v").read(1)
    assert str(error.value).startswith(f"{tmp_path / f'1.{ending}'}: ")


@pytest.mark.parametrize(("largest", "told"), [(4095, True), (4096, False)])
def test_a_picture_of_16_bits_that_is_almost_black_is_told(
    tmp_path: Path, largest: int, told: bool, recwarn: pytest.WarningsRecorder
) -> None:
    write_png(tmp_path / "0.png", np.full((6, 8, 1), largest, np.uint16), 0)
    assert np.unique(read_image(tmp_path / "0.png")).tolist() == [largest >> 8]
    assert any(f"0.png has no value above {largest}" in str(warning.message) for warning in recwarn) == told
