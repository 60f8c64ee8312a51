"""The zip of a submission, and what is refused before it is written."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from chain import EXPRESSIONS, NAMES, SIZE, write_cache, write_perfect, write_split

from rvos_cache.errors import InputError
from rvos_select.merge import merge
from rvos_select.submit import submit


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split that hides its answers (data) and masks of all its expressions (png)."""
    out = tmp_path_factory.mktemp("made")
    write_split(out / "data", "valid")
    (out / "data/valid/mask_dict.json").unlink()
    cache = write_cache(out / "c.zarr")
    merge(write_perfect(out / "s.zarr", cache), [cache], out / "png")
    return out


@pytest.fixture
def masks(made: Path, tmp_path: Path) -> Path:
    """Masks that a test may change; the data lies beside them."""
    shutil.copytree(made / "data", tmp_path / "data")
    return shutil.copytree(made / "png", tmp_path / "png")


def test_the_zip_has_exactly_the_expected_masks(masks: Path, tmp_path: Path) -> None:
    (masks / "a" / "extra").mkdir()
    (masks / "a" / "extra" / "00000.png").write_bytes(b"x")
    out = submit(masks, "mevis", tmp_path / "new/x.zip", root=tmp_path / "data")
    with zipfile.ZipFile(out) as archive:
        wanted = [f"{v}/{e}/{t}.png" for v, held in EXPRESSIONS.items() for e in held for t in NAMES]
        assert archive.namelist() == sorted(wanted)
        image = cv2.imdecode(np.frombuffer(archive.read("a/1/00000.png"), np.uint8), cv2.IMREAD_UNCHANGED)
    assert image.shape == SIZE
    assert set(np.unique(image)) == {0, 255}
    again = submit(masks, "mevis", tmp_path / "y.zip", root=tmp_path / "data")
    assert out.read_bytes() == again.read_bytes()


def put(masks: Path, image: np.ndarray) -> None:
    cv2.imwrite(str(masks / "a/1/00001.png"), image)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: (m / "a/1/00001.png").unlink(), "missing"),
        (lambda m: (m / "a/1/00001.png").write_bytes(b""), "not a readable PNG"),
        (lambda m: (m / "a/1/00001.png").write_bytes(b"\x89PNG"), "not a readable PNG"),
        (lambda m: put(m, np.full(SIZE, 1, np.uint8)), "0 and 255"),
        (lambda m: put(m, np.zeros((5, 6), np.uint8)), "24, 32"),
        (lambda m: put(m, np.zeros((*SIZE, 3), np.uint8)), "grey"),
    ],
)
def test_a_wrong_mask_is_named_and_nothing_written(masks: Path, tmp_path: Path, change: object, says: str) -> None:
    change(masks)  # type: ignore[operator]
    with pytest.raises(InputError, match=says) as fault:
        submit(masks, "mevis", tmp_path / "x.zip", root=tmp_path / "data")
    assert "a/1/00001.png" in str(fault.value)
    assert "\n" not in str(fault.value)
    assert not list(tmp_path.glob("*x.zip*"))


def test_a_dataset_without_a_format(masks: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mevis"):
        submit(masks, "nope", tmp_path / "x.zip")
