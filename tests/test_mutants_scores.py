"""Comparing files of scores where mutants survived: files that name their protocol and files that do not, rows that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rvos_cache.errors import InputError
from rvos_select.evaluation.compare import compare

FRAMES = {f"v{i}/0": {"iou": 0.1 * i, "count": i + 1} for i in range(3)}
VIDEOS = {f"v{i}/0": {"j": 0.1 * i, "f": 0.2 * i} for i in range(3)}


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("named", ["first", "second", "both"])
def test_the_protocol_that_either_file_names_is_that_of_both(tmp_path: Path, named: str) -> None:
    protocol = {"protocol": "image"}
    a = write(tmp_path / "a.json", {**(protocol if named != "second" else {}), "expressions": FRAMES})
    b = write(tmp_path / "b.json", {**(protocol if named != "first" else {}), "expressions": FRAMES})
    table = compare(a, b)
    assert (table["protocol"], table["videos"], table["expressions"]) == ("image", 3, 3)
    # (0·1 + 0.1·2 + 0.2·3) / 6: an expression weighs as many frames as it has.
    assert table["iou"]["a"] == table["iou"]["b"] == pytest.approx(0.8 / 6) and table["iou"]["difference"] == 0


def test_files_without_a_protocol_are_scores_of_videos(tmp_path: Path) -> None:
    a, b = (write(tmp_path / f"{name}.json", {"expressions": VIDEOS}) for name in "ab")
    table = compare(a, b)
    assert table["protocol"] == "video" and table["jf"]["a"] == pytest.approx(0.15)
    assert (table["j"]["a"], table["f"]["a"]) == (pytest.approx(0.1), pytest.approx(0.2))


NO_SCORES: list[dict[str, Any]] = [
    {"protocol": "image", "expressions": VIDEOS}, {"protocol": "nothing", "expressions": VIDEOS},
    {"expressions": [1]}, {"expressions": {}}, {},
]  # fmt: skip


@pytest.mark.parametrize("content", NO_SCORES)
@pytest.mark.parametrize("first", [True, False])
def test_what_holds_no_scores_of_the_protocol_is_one_line(tmp_path: Path, content: dict[str, Any], first: bool) -> None:
    good = write(tmp_path / "good.json", {"expressions": VIDEOS})
    bad = write(tmp_path / "bad.json", content)
    with pytest.raises(InputError) as caught:
        compare(*((bad, good) if first else (good, bad)))
    assert ".json" in str(caught.value) and "\n" not in str(caught.value)


def test_expressions_that_moved_are_listed_from_the_largest_change(tmp_path: Path) -> None:
    changes = {"v0/0": 0.3, "v1/0": -0.2, "v2/0": 0.1, "v3/0": 0.0, "v4/0": -0.4}
    rows = [{key: {"j": 0.5 + k * change, "f": 0.5 + k * change} for key, change in changes.items()} for k in (0, 1)]
    table = compare(*(write(tmp_path / f"{k}.json", {"expressions": rows[k]}) for k in (0, 1)))
    assert [row["expression"] for row in table["up"]] == ["v0/0", "v2/0"]
    assert [row["expression"] for row in table["down"]] == ["v4/0", "v1/0"]
    assert [round(row["difference"], 9) for row in table["up"] + table["down"]] == [0.3, 0.1, -0.4, -0.2]
    low, high = table["jf"]["interval"]
    assert table["jf"]["difference"] == pytest.approx(-0.04) and low < -0.04 < high
