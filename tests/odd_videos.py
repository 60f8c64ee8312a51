"""Command lines run in this process, and small videos in MeViS's layout for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rvos_cache import cli as cache_cli
from rvos_cache.masks import RleMasks
from rvos_select import cli as select_cli

SIZE = (32, 48)
EXPRESSIONS = {"0": ("the red square", [0]), "1": ("the blue square moving left", [1]), "2": ("a dog", [])}
ODD = {"0": ("the red square moves right and " * 84, [0]), "1": ("синий квадрат 蓝色方块 المربع الأزرق", [1])}
Result = tuple[int, str]
"""Exit status, and stderr without progress lines."""


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str] | None, *arguments: object) -> Result:
    """Run a command as its program does. capsys: None leaves stderr unread, and the second part of the result is empty."""
    verb = str(arguments[0])
    main = cache_cli.main if verb in cache_cli.cli.commands else select_cli.main
    monkeypatch.setattr(sys, "argv", ["rvos", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    lines = capsys.readouterr().err.splitlines() if capsys else []
    return int(stop.value.code or 0), "\n".join(line for line in lines if " to go" not in line)


def write_split(folder: Path, videos: dict[str, tuple[int, bool, dict[str, Any]]]) -> None:
    """Videos of (frames, whether a red and a blue square move over the grey, {id: (sentence, objects)}) in MeViS's layout."""
    listed, masks = {}, {}
    for video, (count, moves, sentences) in videos.items():
        (folder / "JPEGImages" / video).mkdir(parents=True)
        dense = np.zeros((2, count, *SIZE), bool)
        for t in range(count if moves else 0):
            dense[0, t, 3:14, 3 + 3 * t : 14 + 3 * t] = dense[1, t, 18:29, 33 - 3 * t : 44 - 3 * t] = True
        for t in range(count):
            frame = np.full((*SIZE, 3), 90, np.uint8)
            frame[dense[0, t]], frame[dense[1, t]] = (220, 40, 40), (40, 60, 220)
            Image.fromarray(frame).save(folder / "JPEGImages" / video / f"{t:05d}.jpg", quality=95)
        runs, first = RleMasks.from_dense(dense), len(masks)
        for a in range(2):
            row = [{"size": list(SIZE), "counts": runs.bytes_at(a, t).decode()} for t in range(count)]
            masks[str(first + a)] = [rle if dense[a, t].any() else None for t, rle in enumerate(row)]
        expressions = {e: {"exp": text, "anno_id": [first + a for a in named]} for e, (text, named) in sentences.items()}
        listed[video] = {"frames": [f"{t:05d}" for t in range(count)], "expressions": expressions}
    (folder / "meta_expressions.json").write_text(json.dumps({"videos": listed}))
    (folder / "mask_dict.json").write_text(json.dumps(masks))
