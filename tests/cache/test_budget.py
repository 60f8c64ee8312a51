"""Room on disk: what a tracker that knows its bytes says before it runs, and what a budget refuses."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rvos_cache.cli import cli
from rvos_cache.cli.extract import format_duration, format_range
from rvos_cache.errors import InputError, warn_once
from rvos_cache.extraction import TrackWork, extract, extract_all, plan_work
from rvos_cache.trackers import TRACKERS
from rvos_cache.trackers.planned import PlannedBytes

sys.path.insert(0, str(Path(__file__).parent))
from engine_fixtures import Large
from store_fixtures import H, Tiny, TinyTracker, W

TINY, TRACKER, LARGE = "store_fixtures:Tiny", "store_fixtures:TinyTracker", "engine_fixtures:Large"
FRAME = 2 * H * W
"""Bytes that Large keeps of a frame; a video of Tiny has five, v01 one."""


class TwoSplits(Tiny):
    @staticmethod
    def splits(root: Path) -> list[str]:
        return ["train", "valid"]


class Torn(Tiny):
    """v02 cannot be opened."""

    def video(self, video_id: str) -> Any:
        if video_id == "v02":
            raise InputError("v02: frames are missing")
        return super().video(video_id)


class OnlyTorn(Torn):
    def video_ids(self) -> list[str]:
        return ["v02"]


class Guessed(Large):
    """Guesses a thousandth of what it stores."""

    def planned_bytes(self, videos: Any) -> PlannedBytes:
        known = super().planned_bytes(videos)
        sizes = {name: size // 1000 for name, size in known.sizes.items()}
        return PlannedBytes(known.setting, known.value, sizes, "a thousandth of a pixel")


@pytest.fixture
def never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def track(*_: object) -> None:
        raise AssertionError("a video was extracted")

    monkeypatch.setattr(TinyTracker, "track", track)


def test_a_budget_names_what_fits() -> None:
    def planned(chosen: str) -> PlannedBytes:
        return PlannedBytes("profile", chosen, {"exact": 4_000_000_000, "frames": 2_000_000_000, "low": 900_000_000})

    planned("low").check(900_000_000)
    with pytest.raises(InputError) as error:
        planned("exact").check(1_000_000_000)
    assert str(error.value) == "profile=exact needs 4.00 GB, the budget is 1.00 GB; these fit: profile=low (900.00 MB)"
    with pytest.raises(InputError, match="no value of profile fits: extract fewer videos"):
        planned("low").check(5)


def test_a_budget_counts_the_videos_of_every_shard_and_no_other(tmp_path: Path, never_runs: None) -> None:
    """Four videos of 16 frames in all; three of 11."""

    def asked(frames: int, **options: Any) -> None:
        budget = frames * FRAME
        extract(TINY, tmp_path / "4", "train", LARGE, tmp_path / "c.zarr", budget=budget, **options)

    for frames, options in ((15, {}), (15, {"shard": "2/4"}), (10, {"limit": 3}), (4, {"videos": ["v03"]})):
        with pytest.raises(InputError, match="keep=all needs"):
            asked(frames, **options)
    assert not (tmp_path / "c.zarr").exists()


def test_what_fits_is_extracted(tmp_path: Path) -> None:
    for name, budget in (("all", 16), ("half", 8)):
        report = extract(
            TINY, tmp_path / "4", "train", LARGE, tmp_path / f"{name}.zarr", overrides={"keep": name}, budget=budget * FRAME
        )
        assert len(report.done) == 4


def test_all_splits_share_a_budget(tmp_path: Path, never_runs: None) -> None:
    two = f"{__name__}:TwoSplits"
    with pytest.raises(InputError, match="keep=all needs"):
        extract_all(two, tmp_path / "4", tracker=LARGE, encoder="hashed", out=tmp_path / "out", budget=32 * FRAME - 1)
    assert not (tmp_path / "out").exists()


def test_all_splits_use_one_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are loaded once."""
    trackers: list[object] = []

    class Counted(TinyTracker):
        def __init__(self, settings: Any) -> None:
            super().__init__(settings)
            trackers.append(self)

    monkeypatch.setitem(TRACKERS, "counted", f"{__name__}:Counted")
    monkeypatch.setattr(sys.modules[__name__], "Counted", Counted, raising=False)
    reports = extract_all(f"{__name__}:TwoSplits", tmp_path / "2", tracker="counted", encoder="hashed", out=tmp_path / "out")
    assert len(trackers) == 1 and [len(report.done) for report in reports.values()] == [2] * 4


def test_a_video_that_cannot_be_opened_takes_no_room(tmp_path: Path) -> None:
    where = (f"{__name__}:Torn", tmp_path / "4", "train", LARGE, tmp_path / "c.zarr")
    with pytest.raises(InputError, match="keep=all needs"):
        extract(*where, budget=11 * FRAME - 1)
    assert list(extract(*where, budget=11 * FRAME).failed) == ["v02"]


def test_a_tracker_that_does_not_know_is_sent_to_plan(tmp_path: Path, never_runs: None) -> None:
    with pytest.raises(InputError, match=r"TinyTracker: it does not know its bytes .* rvos-cache plan --budget"):
        extract(TINY, tmp_path / "4", "train", TRACKER, tmp_path / "c.zarr", budget=10**12)
    assert not (tmp_path / "c.zarr").exists()


def planned_by_command(tmp_path: Path, tracker: str, *more: str) -> Any:
    words = ["plan", "--dataset", TINY, "--root", str(tmp_path / "4"), "--split", "train", "--tracker", tracker, *more]
    return CliRunner().invoke(cli, words)


def test_plan_shows_bytes_first_and_then_times(tmp_path: Path) -> None:
    lines = planned_by_command(tmp_path, LARGE, "--budget", "1MB").output.splitlines()
    assert lines[:3] == ["keep=half: 3.26 kB", "keep=all: 6.53 kB, this run", "4 videos, 16 frames"]
    assert lines[3].endswith(" kB on disk") and " seconds with 1 job, " in lines[4]
    assert any(line.startswith("timed: ") and "the rest is loading" in line for line in lines)


def test_a_budget_refuses_what_was_measured_where_bytes_were_guessed(tmp_path: Path) -> None:
    tracker = "test_budget:Guessed"
    result = planned_by_command(tmp_path, tracker, "--budget", "1kB")
    assert isinstance(result.exception, InputError) and "on disk, the budget is 1.00 kB" in str(result.exception)
    lines = result.output.splitlines()
    assert lines[1] == "keep=all: 6 bytes, this run (an estimate by a thousandth of a pixel, which other frames may exceed)"
    assert lines[3].endswith(" kB on disk, as measured on the videos timed")
    assert planned_by_command(tmp_path, tracker, "--budget", "1MB").exit_code == 0
    where = (TINY, tmp_path / "4", "train", tracker, tmp_path / "c.zarr")
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"keep=all needs 6 bytes, an estimate by .*; rvos-cache plan --budget measures"):
        extract(*where, budget=1000)


def test_loading_a_tracker_that_knows_its_bytes_is_counted_as_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original_init = TinyTracker.__init__

    def slowly(self: TinyTracker, settings: Any) -> None:
        time.sleep(0.2)
        original_init(self, settings)

    monkeypatch.setattr(TinyTracker, "__init__", slowly)
    plan = plan_work(TrackWork(TINY, tmp_path / "2", "train", LARGE), 1)
    assert plan.loading >= 0.2 and plan.planned is not None and plan.planned.sizes["all"] == 6 * FRAME


def test_a_plan_names_the_videos_that_cannot_be_opened_and_counts_the_others(tmp_path: Path) -> None:
    plan = plan_work(TrackWork("test_budget:Torn", tmp_path / "5", "train", TRACKER), 9)
    assert (plan.videos, plan.frames) == (4, 16) and plan.failed == {"v02": "v02: frames are missing"}
    assert sorted(plan.timed) == ["v00", "v01", "v03", "v04"]
    with pytest.raises(InputError, match="of 1 none can be opened; first v02: frames are missing; see rvos-cache check"):
        plan_work(TrackWork("test_budget:OnlyTorn", tmp_path / "5", "train", TRACKER), 9)


def test_plan_refuses_after_timing_what_nobody_knew_before(tmp_path: Path) -> None:
    result = planned_by_command(tmp_path, TRACKER, "--budget", "100")
    assert isinstance(result.exception, InputError) and "the budget is 100 bytes" in str(result.exception)
    assert "4 videos, 16 frames" in result.output
    assert planned_by_command(tmp_path, TRACKER, "--budget", "1GB").exit_code == 0


@pytest.mark.parametrize("size", ["", "much", "-3GB", "3XB"])
def test_what_is_no_size_is_a_usage_error(tmp_path: Path, size: str) -> None:
    result = planned_by_command(tmp_path, TRACKER, "--budget", size)
    assert result.exit_code == 2 and f"{size!r} is no size; give one like 200GB" in result.output


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (0.0123, "0.0123 seconds"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (7199, "120 minutes"),
        (90000, "25 hours"),
        (7.3e6, "2028 hours"),
    ],
)
def test_a_duration_is_told_in_a_unit_that_fits(seconds: float, wanted: str) -> None:
    assert format_duration(seconds) == wanted


@pytest.mark.parametrize(
    ("fastest", "slowest", "wanted"),
    [(58, 65.6, "58 to 65.6 seconds"), (90, 150, "90 seconds to 2.5 minutes"), (7200, 36000, "2 to 10 hours")],
)
def test_a_unit_that_both_durations_have_is_said_once(fastest: float, slowest: float, wanted: str) -> None:
    assert format_range(fastest, slowest) == wanted
