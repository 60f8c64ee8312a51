"""Masks as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from rvos_cache.errors import InputError
from rvos_cache.media.mask_png import (
    check_mask_png,
    decode_mask_png,
    encode_mask_png,
    read_grey_png,
    read_mask_png,
    write_mask_png,
)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (6, 8)])
def test_written_masks_are_read_back(tmp_path: Path, size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(size) > 0.5
    write_mask_png(tmp_path / "m.png", mask)
    assert np.array_equal(read_mask_png(tmp_path / "m.png", size), mask)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "L"
        assert set(np.unique(np.asarray(image))) <= {0, 255}
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]


def png(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:-30]), "not a whole PNG"),
        (lambda p: p.write_bytes(b""), "not a whole PNG"),
        (lambda p: png(p, np.zeros((9, 9), np.uint8)), r"\(9, 9\), its frame \(40, 50\)"),
        (lambda p: png(p, np.full((40, 50), 7, np.uint8)), "holds 0 and 255"),
        (lambda p: png(p, np.zeros((40, 50, 3), np.uint8)), "grey PNG"),
    ],
)
def test_the_error_of_a_damaged_mask_names_its_file(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "m.png"
    write_mask_png(path, np.random.default_rng(0).random((40, 50)) > 0.5)
    damage(path)  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as error:
        read_mask_png(path, (40, 50))
    assert str(path) in str(error.value)


def test_the_fast_decoder_agrees_with_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast path gives the mask without Pillow for files of `encode_mask_png`; others, also damaged ones, go to Pillow."""
    mask, path = np.random.default_rng(0).random((40, 50)) > 0.5, tmp_path / "m.png"
    content = encode_mask_png(mask)
    path.write_bytes(content)
    slow_reads: list[Path] = []

    def read(path: Path, size: tuple[int, int]) -> np.ndarray:
        slow_reads.append(path)
        return read_mask_png(path, size)

    monkeypatch.setattr("rvos_cache.media.mask_png.read_mask_png", read)
    assert np.array_equal(decode_mask_png(path, content, (40, 50)) > 0, mask) and not slow_reads
    one_bit = Image.fromarray(mask)
    one_bit.save(path)
    assert np.array_equal(decode_mask_png(path, path.read_bytes(), (40, 50)) > 0, mask) and len(slow_reads) == 1
    for position in (20, len(content) // 2):
        damaged = content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="m.png"):
            decode_mask_png(path, damaged, (40, 50))
    assert len(slow_reads) == 3


MASK = np.random.default_rng(1).random((40, 50)) > 0.5


def saved(path: Path, indices: np.ndarray, colours: list[int], **options: object) -> None:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(colours)
    image.save(path, **options)


SEEN = {
    "palette, black is 0": lambda p: saved(p, MASK, [0, 0, 0, 255, 255, 255]),
    "palette, white is 0": lambda p: saved(p, ~MASK, [255, 255, 255, 0, 0, 0]),
    "palette, white is 0, one bit": lambda p: saved(p, ~MASK, [255, 255, 255, 0, 0, 0], bits=1),
    "quantized": lambda p: Image.fromarray(MASK.astype(np.uint8) * 255).convert("RGB").quantize(2).save(p),
    "DAVIS's palette": lambda p: saved(p, MASK * 2, [0, 0, 0, 128, 0, 0, 0, 128, 0]),
    "grey": lambda p: png(p, MASK.astype(np.uint8) * 255),
    "0 and 1": lambda p: png(p, MASK.astype(np.uint8)),
    "one bit": lambda p: png(p, MASK),
    "16 bits": lambda p: png(p, MASK.astype(np.uint16) * 65535),
    "transparent black": lambda p: saved(p, MASK, [0, 0, 0, 255, 255, 255], transparency=0),
}


@pytest.mark.parametrize("kind", sorted(SEEN))
def test_a_mask_is_what_opencv_sees(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.png"
    SEEN[kind](path)
    seen = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(seen > 0, MASK)
    assert np.array_equal(read_mask_png(path, (40, 50)), MASK)
    assert np.array_equal(decode_mask_png(path, path.read_bytes(), (40, 50)) > 0, MASK)
    assert np.array_equal(read_grey_png(path, (40, 50), ""), seen)


def turned(path: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 3
    Image.fromarray(MASK.astype(np.uint8) * 255).save(path, exif=tag)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: saved(p, MASK, [0, 0, 0, 0, 0, 0]), "its palette has one colour for several numbers"),
        (lambda p: saved(p, MASK, [0, 0, 0, 0, 0, 1], transparency=0), None),
        (lambda p: saved(p, MASK, [0, 0, 0, 255, 255, 255], transparency=1), "transparent pixels that are not its black ones"),
        (
            lambda p: saved(p, MASK.astype(int) + (np.arange(50) > 30), [0, 0, 0, 128, 0, 0, 0, 128, 0]),
            r"this holds \[0, 38, 75\]",
        ),
        (lambda p: saved(p, MASK, [255, 0, 0, 0, 255, 0]), r"this holds \[76, 150\]"),
        (turned, "has an EXIF tag that turns it"),
        (
            lambda p: Image.fromarray(MASK.astype(np.uint8) * 255).save(
                p, save_all=True, append_images=[Image.fromarray((~MASK).astype(np.uint8) * 255)]
            ),
            "holds 2 pictures, a mask is one",
        ),
    ],
)
def test_a_mask_that_is_not_known_is_one_line(tmp_path: Path, write: Callable[[Path], object], message: str | None) -> None:
    path = tmp_path / "m.png"
    write(path)
    if message is None:
        # Almost black: OpenCV sees nothing, and neither does a viewer.
        assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0, np.zeros((40, 50), bool))
        message = "its palette has one colour"
    for step in (lambda: read_mask_png(path, (40, 50)), lambda: decode_mask_png(path, path.read_bytes(), (40, 50))):
        with pytest.raises(InputError, match=message) as error:
            step()
        assert str(error.value).startswith(str(path))
    with pytest.raises(InputError, match=str(path)):
        check_mask_png(path, (40, 50))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((4, 5), 255, np.uint8), None),
        (np.full((4, 5), 1, np.uint8), "expected values 0 and 255 only, found 1"),
        (np.zeros((5, 4), np.uint8), r"found L \(5, 4\)"),
        (np.zeros((4, 5, 3), np.uint8), "found RGB"),
        (np.zeros((4, 5), bool), "found 1 "),
    ],
)
def test_a_mask_for_a_benchmark_is_8_bit_grey_of_0_and_255(tmp_path: Path, pixels: np.ndarray, message: str | None) -> None:
    path = tmp_path / "m.png"
    png(path, pixels)
    if message is None:
        assert check_mask_png(path, (4, 5)) == path.read_bytes()
    else:
        with pytest.raises(InputError, match=message):
            check_mask_png(path, (4, 5))
