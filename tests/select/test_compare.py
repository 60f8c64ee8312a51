"""Two files of scores: their difference by hand, intervals against a plain bootstrap, and files that cannot be compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rvos_cache.errors import InputError
from rvos_select.cli import main
from rvos_select.evaluation.compare import RESAMPLES, compare

BASE = {"protocol": "video", "dataset": "mevis", "split": "valid_u"}


def write(path: Path, scores: dict[str, Any], **other: Any) -> Path:
    """scores: key -> J and F, or IoU and frames."""
    image = other.get("protocol") == "image"
    names = ("iou", "count") if image else ("j", "f")
    rows = {key: dict(zip(names, row)) for key, row in scores.items()}
    path.write_text(json.dumps({**BASE, **other, "expressions": rows}))
    return path


ONE = {"a/0": (0.5, 0.7), "a/1": (0.2, 0.2), "b/0": (1.0, 1.0), "c/0": (0.0, 0.0)}
TWO = {"a/0": (0.6, 0.8), "a/1": (0.1, 0.1), "b/0": (1.0, 1.0), "c/0": (0.4, 0.8)}


def test_by_hand(tmp_path: Path) -> None:
    compared = compare(write(tmp_path / "a.json", ONE), write(tmp_path / "b.json", TWO))
    assert (compared["protocol"], compared["videos"], compared["expressions"]) == ("video", 3, 4)
    assert [compared["jf"][k] for k in ("a", "b", "difference")] == pytest.approx([0.45, 0.6, 0.15])
    assert compared["j"]["difference"] == pytest.approx(0.1) and compared["f"]["difference"] == pytest.approx(0.2)
    assert [row["expression"] for row in compared["up"]] == ["c/0", "a/0"]
    assert [row["expression"] for row in compared["down"]] == ["a/1"]
    assert compared["up"][0]["difference"] == pytest.approx(0.6)
    # Three videos with sums (0, 0, 0.6) over (2, 1, 1) expressions: from none of c to c alone.
    assert compared["jf"]["interval"] == pytest.approx([0, 0.6])


def test_a_file_against_itself_and_the_other_way_round(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.json", ONE), write(tmp_path / "b.json", TWO)
    same = compare(a, a)
    assert (same["jf"]["difference"], same["jf"]["interval"], same["up"], same["down"]) == (0, [0, 0], [], [])
    forward, backward = compare(a, b), compare(b, a)
    assert backward["jf"]["interval"] == pytest.approx([-end for end in forward["jf"]["interval"]][::-1])
    assert [row["expression"] for row in backward["down"]] == [row["expression"] for row in forward["up"]]


def test_the_interval_is_the_plain_bootstraps(tmp_path: Path) -> None:
    """Expressions put together video by video, a mean for each resample; and wider than if expressions were resampled."""
    rng = np.random.default_rng(3)
    one, two = {}, {}
    for video in range(25):
        shift = rng.normal(0.02, 0.1)
        for e in range(int(rng.integers(1, 12))):
            low = rng.uniform(0.3, 0.5)
            one[f"v{video:02d}/{e}"] = (low, low)
            two[f"v{video:02d}/{e}"] = (low + shift, low + shift + rng.normal(0, 0.01))
    a, b = write(tmp_path / "a.json", one), write(tmp_path / "b.json", two)
    compared = compare(a, b)
    assert compared == compare(a, b) and compared != compare(a, b, seed=1)
    change = {key: np.mean(two[key]) - np.mean(one[key]) for key in one}
    videos = sorted({key.split("/")[0] for key in one})
    of = [[d for key, d in change.items() if key.split("/")[0] == v] for v in videos]
    plain = [np.mean(np.concatenate([of[i] for i in rng.integers(0, 25, 25)])) for _ in range(4000)]
    assert compared["jf"]["interval"] == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.004)
    single = [np.mean(rng.choice(list(change.values()), len(change))) for _ in range(1000)]
    wide = np.diff(compared["jf"]["interval"])[0]
    assert wide > 1.5 * np.diff(np.percentile(single, [2.5, 97.5]))[0]
    assert RESAMPLES >= 1000


def test_the_ten_that_moved_most_each_way(tmp_path: Path) -> None:
    change = {f"v/{i:02d}": (i - 15) / 40 for i in range(31)}
    a = write(tmp_path / "a.json", dict.fromkeys(change, (0.5, 0.5)))
    compared = compare(a, write(tmp_path / "b.json", {key: (0.5 + d, 0.5 + d) for key, d in change.items()}))
    assert [row["expression"] for row in compared["up"]] == [f"v/{i:02d}" for i in range(30, 20, -1)]
    assert [row["expression"] for row in compared["down"]] == [f"v/{i:02d}" for i in range(10)]


def test_one_video_has_no_interval(tmp_path: Path) -> None:
    scores = [{key: row for key, row in rows.items() if key.startswith("a/")} for rows in (ONE, TWO)]
    compared = compare(*(write(tmp_path / f"{i}.json", rows) for i, rows in enumerate(scores)))
    assert compared["videos"] == 1 and compared["jf"]["interval"] is None


def test_frames_weigh_in_the_image_protocol(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", {"a/0": (0.5, 3), "b/0": (0.1, 1)}, protocol="image")
    b = write(tmp_path / "b.json", {"a/0": (0.9, 3), "b/0": (0.1, 1)}, protocol="image")
    compared = compare(a, b)
    assert [compared["iou"][k] for k in ("a", "b", "difference")] == pytest.approx([0.4, 0.7, 0.3])
    # From b's one frame alone to a's three alone.
    assert compared["iou"]["interval"] == pytest.approx([0, 0.4])
    other = write(tmp_path / "c.json", {"a/0": (0.9, 2), "b/0": (0.1, 1)}, protocol="image")
    with pytest.raises(InputError, match="count other frames"):
        compare(a, other)


def test_expressions_of_one_file_alone(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.json", ONE), write(tmp_path / "b.json", {k: v for k, v in TWO.items() if k != "c/0"})
    for pair in ((a, b), (b, a)):
        with pytest.raises(InputError, match=r"a\.json: 1 expressions that the other file lacks, first c/0"):
            compare(*pair)
    compared = compare(a, b, allow_missing=True)
    assert (compared["only_a"], compared["only_b"], compared["expressions"]) == (["c/0"], [], 3)
    assert compared["jf"]["difference"] == pytest.approx(0)
    with pytest.raises(InputError, match="no expression is also in"):
        compare(a, write(tmp_path / "c.json", {"x/0": (1, 1)}), allow_missing=True)


BAD = {
    "nothing": None,
    "no JSON": "{",
    "nested": "[" * 100_000,
    "a list": "[]",
    "no scores": "{}",
    "no expression": '{"expressions": {}}',
    "not a number": '{"expressions": {"a/0": {"j": "1", "f": 1}}}',
    "NaN": '{"expressions": {"a/0": {"j": NaN, "f": 1}}}',
    "no F": '{"expressions": {"a/0": {"j": 1}}}',
    "a number": '{"expressions": {"a/0": 1}}',
    "no frames": '{"protocol": "image", "expressions": {"a/0": {"iou": 1, "count": 0}}}',
    "another protocol": '{"protocol": "image", "expressions": {"a/0": {"iou": 1, "count": 1}}}',
    "another split": '{"split": "train", "expressions": {"a/0": {"j": 1, "f": 1}}}',
    "unknown protocol": '{"protocol": "new", "expressions": {"a/0": {"j": 1, "f": 1}}}',
}


@pytest.mark.parametrize("fault", sorted(BAD))
def test_files_that_are_no_such_scores(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write(tmp_path / "a.json", {"a/0": (1, 1)}), tmp_path / "b.json"
    content = BAD[fault]
    if content is not None:
        b.write_text(content)
    for pair in ((a, b), (b, a)):
        monkeypatch.setattr(sys, "argv", ["rvos-select", "compare", *map(str, pair)])
        with pytest.raises(SystemExit) as ended:
            main()
        message = capsys.readouterr().err
        assert ended.value.code == 1
        assert message.startswith("error: ") and message.strip().count("\n") == 0 and str(b) in message, message


def test_the_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write(tmp_path / "a.json", ONE), write(tmp_path / "b.json", TWO)
    monkeypatch.setattr(sys, "argv", ["rvos-select", "compare", str(a), str(b), "--json", str(tmp_path / "out/c.json")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "+15.00" in printed and "c/0" in printed and "4 expressions of 3 videos" in printed
    assert json.loads((tmp_path / "out/c.json").read_text()) == compare(a, b)
