"""Files of named tensors: read whole, without running code, or refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rvos_cache.errors import InputError
from rvos_cache.tensors import read_tensors

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1, dtype=torch.int64)}


class Code:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("name", "save", "nested"),
    [
        ("x.safetensors", lambda path: save_file(TENSORS, path), ()),
        ("x.pth", lambda path: torch.save(TENSORS, path), ()),
        ("x.pth", lambda path: torch.save({"model": TENSORS, "epoch": 3}, path), "model"),
        ("x.pth", lambda path: torch.save({"model": TENSORS, "epoch": 3}, path), ("state_dict", "model")),
        ("x.pth", lambda path: torch.save(TENSORS, path), "model"),
    ],
)
def test_named_tensors_are_read(tmp_path: Path, name: str, save: Callable[[Path], None], nested: str | tuple[str, ...]) -> None:
    save(tmp_path / name)
    tensors = read_tensors(tmp_path / name, "fix it", nested=nested)
    assert tensors.keys() == TENSORS.keys() and all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert all(tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)


def truncated(path: Path) -> None:
    """As a download that broke off."""
    torch.save({"model": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def test_where_tensors_are_looked_for_is_told(tmp_path: Path) -> None:
    torch.save({"model": TENSORS}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="named tensors, at the top or under 'model_state_dict', found model: dict; fix it"):
        read_tensors(tmp_path / "x.pth", "fix it", nested="model_state_dict")


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.safetensors", lambda path: None, "no such file; fix it"),
        ("x.pth", lambda path: path.mkdir(), "is a folder, expected a file; fix it"),
        ("x.safetensors", lambda path: path.write_bytes(b"no tensors"), "not a readable safetensors file .*; fix it"),
        ("x.pth", lambda path: path.write_bytes(b"no tensors"), "cannot be read as tensors alone .*; fix it"),
        (
            "x.pth",
            lambda path: path.write_bytes(b"hello\n"),
            r"tensors alone \(KeyError, not written by torch.save\), .*; fix it",
        ),
        ("x.pth", truncated, r"it is not whole \(2000 bytes\), as a download that broke off leaves it; .*; fix it"),
        (
            "x.pth",
            lambda path: torch.save({"x": Code(path.with_name("ran"))}, path),
            "cannot be read as tensors alone .*; fix it",
        ),
        ("x.pth", lambda path: torch.save({"model": TENSORS, "epoch": 3}, path), "found model: dict, epoch: int; fix it"),
        ("x.pth", lambda path: torch.save([torch.ones(1)], path), "found list; fix it"),
        ("x.pth", lambda path: torch.save({}, path), "found none; fix it"),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path: Path, name: str, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: .*{message}") as caught:
        read_tensors(tmp_path / name, "fix it")
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()
