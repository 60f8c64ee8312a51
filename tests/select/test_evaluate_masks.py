"""Scores of masks as files: those of other programs, and spoilt ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from chain import write_cache, write_perfect, write_split
from PIL import Image

from rvos_cache.errors import InputError
from rvos_select.evaluation import evaluate_pngs
from rvos_select.merging.merge import merge


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, c.zarr, s.zarr and png: all exactly right."""
    out = tmp_path_factory.mktemp("made")
    write_split(out / "data")
    cache = write_cache(out / "c.zarr")
    merge(write_perfect(out / "s.zarr", cache), [cache], out / "png")
    return out


@pytest.fixture
def split(source: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(source, tmp_path / "split")


def rewritten(path: Path, pixels: np.ndarray, mode: str | None = None, **saved: Any) -> None:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, format="PNG", **saved)


def palette(path: Path, pixels: np.ndarray) -> None:
    image = Image.fromarray((pixels > 0).astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.save(path)


WRITTEN = {
    "compressed": lambda p, m: rewritten(p, m, compress_level=9),
    "not compressed": lambda p, m: rewritten(p, m, compress_level=0),
    "0 and 1": lambda p, m: rewritten(p, m // 255),
    "one bit": lambda p, m: rewritten(p, m, "1"),
    "sixteen bits": lambda p, m: rewritten(p, (m // 255).astype(np.uint16)),
    "palette": palette,
    "transparent black": lambda p, m: rewritten(p, m, transparency=0),
    "OpenCV": lambda p, m: cv2.imwrite(str(p), m),
}


@pytest.mark.parametrize("kind", sorted(WRITTEN))
def test_masks_of_other_programs_are_read_alike(split: Path, kind: str) -> None:
    for path in sorted((split / "png").rglob("*.png")):
        WRITTEN[kind](path, np.asarray(Image.open(path)))
    assert evaluate_pngs("mevis", split / "data", "valid_u", split / "png")["jf"] == 1.0


def damaged(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 0x55
    path.write_bytes(bytes(raw))


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-40]), "not a whole PNG"),
    "empty": (lambda p: p.write_bytes(b""), "not a whole PNG"),
    "a byte": (lambda p: damaged(p, p.read_bytes().index(b"IDAT") + 8), "not a whole PNG"),
    "text": (lambda p: p.write_text("hello"), "not a whole PNG"),
    "grey": (lambda p: rewritten(p, np.full((24, 32), 7, np.uint8)), "a mask holds 0 and 255, this holds .7"),
    "colours": (lambda p: rewritten(p, np.zeros((24, 32, 3), np.uint8)), "this is RGB"),
    "another size": (lambda p: rewritten(p, np.zeros((32, 24), np.uint8)), r"\(32, 24\), its frame \(24, 32\)"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "cannot be read"),
    "a file for the folder": (lambda p: (shutil.rmtree(p.parent), p.parent.write_text("")), "the prediction is missing"),
}


@pytest.mark.parametrize("fault", sorted(SPOILT))
def test_spoilt_masks_are_named(split: Path, capfd: pytest.CaptureFixture[str], fault: str) -> None:
    """In one line, and libraries say nothing beside it."""
    spoil, message = SPOILT[fault]
    spoil(split / "png/b/0/00001.png")
    with pytest.raises(InputError, match=message) as error:
        evaluate_pngs("mevis", split / "data", "valid_u", split / "png")
    assert str(split / "png/b/0") in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr().err == ""
