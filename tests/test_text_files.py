"""Text files as editors save them: a byte order mark changes nothing, UTF-16 and other encodings are one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from odd_videos import EXPRESSIONS, write_split

from rvos_cache.datasets import open_dataset
from rvos_cache.datasets.a2d_sentences import _csv
from rvos_cache.errors import InputError
from rvos_cache.exchange.import_masks import _from_json
from rvos_cache.settings import read_toml
from rvos_cache.system.text_files import read_text
from rvos_cache.types import Video
from rvos_select.evaluation.compare import compare
from rvos_select.runs.checkpoint import read_json

SENTENCE = "the dog – 左边的狗"
SCORES = {"j": 0.5, "f": 0.5, "jf": 0.5, "expressions": {f"{SENTENCE}/0": {"j": 0.5, "f": 0.5}}}


def of_mevis(path: Path) -> object:
    write_split(path.parent / "train", {"v": (1, True, EXPRESSIONS)})
    (path.parent / "train/meta_expressions.json").write_bytes(path.read_bytes())
    return [e.text for e in open_dataset("mevis", path.parent, "train").expressions("v")]


def of_plain(path: Path) -> object:
    (path.parent / "expressions.json").write_bytes(path.read_bytes())
    (path.parent / "videos/v").mkdir(parents=True, exist_ok=True)
    return [e.text for e in open_dataset("plain", path.parent, "all").expressions("v")]


def of_masks(path: Path) -> object:
    video = Video("v", ("00000",), (1, 1), lambda t: np.zeros((1, 1, 3), np.uint8))
    return list(_from_json(path, video))


MEVIS = {"videos": {"v": {"frames": ["00000"], "expressions": {"0": {"exp": SENTENCE, "anno_id": [0]}}}}}
READERS: dict[str, tuple[Callable[[Path], object], str, object]] = {
    "lists of MeViS": (of_mevis, json.dumps(MEVIS, ensure_ascii=False), [SENTENCE]),
    "expressions.json": (of_plain, json.dumps({"v": [SENTENCE]}, ensure_ascii=False), [SENTENCE]),
    "CSV": (lambda path: [row for _, row in _csv(path)], f'v,1,"{SENTENCE}"\n', [["v", "1", SENTENCE]]),
    "TOML settings": (read_toml, f'name = "{SENTENCE}"\n', {"name": SENTENCE}),
    "JSON of a run": (lambda path: read_json(path, "train again"), json.dumps([SENTENCE], ensure_ascii=False), [SENTENCE]),
    "scores": (lambda path: compare(path, path)["expressions"], json.dumps(SCORES, ensure_ascii=False), 1),
    "COCO masks": (of_masks, json.dumps({SENTENCE: [None]}, ensure_ascii=False), [SENTENCE]),
}


@pytest.mark.parametrize("name", sorted(READERS))
def test_a_byte_order_mark_changes_nothing(tmp_path: Path, name: str) -> None:
    read, text, expected = READERS[name]
    for i, encoding in enumerate(("utf-8", "utf-8-sig")):
        (tmp_path / str(i)).mkdir()
        path = tmp_path / str(i) / "file"
        path.write_text(text, encoding)
        assert read(path) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", sorted(READERS.keys() - {"COCO masks"}))
def test_another_encoding_is_one_line(tmp_path: Path, name: str, encoding: str) -> None:
    read, text, _ = READERS[name]
    path = tmp_path / "file"
    path.write_bytes(text.replace("左边的狗", "é").encode(encoding))
    with pytest.raises(InputError) as error:
        read(path)
    expected = "not UTF-8 text (byte 0x96)" if encoding == "cp1252" else "UTF-16 or UTF-32 text, expected UTF-8"
    assert expected in str(error.value) and str(error.value).endswith("; save it as UTF-8") and "\n" not in str(error.value)


def test_the_line_of_a_wrong_byte_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one\ntwo\nthr\xe9e\n")
    with pytest.raises(InputError, match=r"file, line 3: not UTF-8 text \(byte 0xe9\)"):
        read_text(tmp_path / "file")
