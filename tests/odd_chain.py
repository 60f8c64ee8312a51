"""Everything that the command lines make of two small splits with odd videos, and the options that name it."""

from __future__ import annotations

from pathlib import Path

import pytest
from odd_videos import EXPRESSIONS, ODD, call, write_split

HASHED = ("--encoder", "hashed")
VALID, TEXT = ("--cache", "{work}/valid_u.zarr"), ("--text", "{work}/valid_u-text.zarr")
SPLIT = ("--dataset", "mevis", "--root", "{work}/data", "--split", "train")


def write_chain(out: Path) -> Path:
    """Data, tracks and words of both splits, a trained run, selections and masks. In valid_u the video `empty` cannot be
    extracted, `flat` has no tracks, `one` has one frame, and `odd` has a sentence of 504 words and one in three scripts."""
    write_split(out / "data/train", dict.fromkeys(("t0", "t1"), (5, True, EXPRESSIONS)))
    empty = {**EXPRESSIONS, "3": (" \n ", [0])}
    odd = {"odd": (5, True, ODD), "one": (1, True, EXPRESSIONS), "flat": (4, False, EXPRESSIONS), "empty": (3, True, empty)}
    write_split(out / "data/valid_u", odd)
    with pytest.MonkeyPatch.context() as patch:
        for split in ("train", "valid_u"):
            location = ("--dataset", "mevis", "--root", out / "data", "--split", split)
            code = int(split == "valid_u")
            assert call(patch, None, "extract", *location, "--out", out / f"{split}.zarr")[0] == code
            assert call(patch, None, "extract-text", *location, *HASHED, "--out", out / f"{split}-text.zarr")[0] == code
        train, valid = (("cache", "train"), ("text", "train-text")), (("cache", "valid_u"), ("text", "valid_u-text"))
        options = [w for option, name in train for w in (f"--{option}", out / f"{name}.zarr")]
        options += [w for option, name in valid for w in (f"--valid-{option}", out / f"{name}.zarr")]
        chosen = ("--selector", "mean-cosine", "--set", "epochs=1", "--set", "config.width=8")
        assert call(patch, None, "train", *options, *chosen, "--out", out / "run") == (0, "")
        tracks = ("--cache", out / "valid_u.zarr")
        text = ("--text", out / "valid_u-text.zarr")
        assert call(patch, None, "predict", "--run", out / "run", *tracks, *text, "--out", out / "s.zarr") == (0, "")
        assert call(patch, None, "merge", "--selections", out / "s.zarr", *tracks, "--out", out / "png") == (0, "")
    return out
