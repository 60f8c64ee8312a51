"""Corrupted frames: the published parameters by their statistics and by hand, reproducible, recorded in the card."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_videos import EXPRESSIONS, Result, call, write_split
from scipy import ndimage, stats

from rvos_cache.corruptions import CORRUPTIONS, corrupt_video, impulse_noise, motion_blur, parse_corruption
from rvos_cache.errors import InputError
from rvos_cache.exchange.mirror import mirror
from rvos_cache.extraction import extract, extract_all
from rvos_cache.media.frames import folder_video
from rvos_cache.store import TrackCache, content_digest, default_folder, text_path, tracks_path
from rvos_cache.types import Video
from rvos_select.data.caches import TrackSource

NAMES = sorted(CORRUPTIONS)
GAUSSIAN = {1: 0.08, 2: 0.12, 3: 0.18, 4: 0.26, 5: 0.38}
SHOT = {1: 60, 2: 25, 3: 12, 4: 5, 5: 3}
IMPULSE = {1: 0.03, 2: 0.06, 3: 0.09, 4: 0.17, 5: 0.27}
MOTION = {1: (10, 3), 2: (15, 5), 3: (15, 8), 4: (15, 12), 5: (20, 15)}

MAX_DISTANCE = 0.0048
"""The largest distance of the distribution of 270,000 samples from the true one, exceeded once in 100,000 (Kolmogorov)."""


def video_of(*frames: np.ndarray, video_id: str = "v", first: int = 0) -> Video:
    names = tuple(f"{first + t:05d}" for t in range(len(frames)))
    return Video(video_id, names, frames[0].shape[:2], lambda t: frames[t])


def flat(level: int, side: int = 300) -> np.ndarray:
    return np.full((side, side, 3), level, np.uint8)


def textured(size: tuple[int, int] = (40, 56), seed: int = 0) -> np.ndarray:
    frame = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    frame.flags.writeable = False
    return frame


class FixedAngle:
    """A random generator that gives one angle, for motion blur."""

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def uniform(self, low: float, high: float) -> float:
        assert (low, high) == (-45, 45) and low <= self.degrees <= high
        return self.degrees


def cumulative_shares(frame: np.ndarray) -> np.ndarray:
    """The share of values at or below each level 0..255."""
    return np.bincount(frame.ravel(), minlength=256).cumsum() / frame.size


@pytest.mark.parametrize("severity", GAUSSIAN)
@pytest.mark.parametrize("level", [0, 90, 255])
def test_gaussian_noise_has_the_published_spread(severity: int, level: int) -> None:
    """A value at or below k is a normal draw below (k + 1) / 255: fractions are cut off."""
    shares = cumulative_shares(corrupt_video(video_of(flat(level)), f"gaussian_noise:{severity}").read(0))
    expected = stats.norm.cdf((np.arange(1, 256) / 255 - level / 255) / GAUSSIAN[severity])
    assert np.abs(shares[:-1] - expected).max() < MAX_DISTANCE


@pytest.mark.parametrize("severity", SHOT)
def test_shot_noise_counts_photons(severity: int) -> None:
    photons = SHOT[severity]
    noisy = corrupt_video(video_of(flat(102)), f"shot_noise:{severity}").read(0)  # 0.4 of the full range
    counts = np.rint((noisy + 0.5) * photons / 255).astype(int)
    expected = stats.poisson.cdf(np.arange(photons), 0.4 * photons)
    assert np.abs(cumulative_shares(counts)[:photons] - expected).max() < MAX_DISTANCE
    assert set(np.unique(noisy)) <= {whole - cut for whole in (255 * np.arange(photons + 1) // photons) for cut in (0, 1)}


@pytest.mark.parametrize("severity", IMPULSE)
def test_impulse_noise_changes_the_published_share(severity: int) -> None:
    """Five standard deviations of a share among 270,000 values."""
    noisy = corrupt_video(video_of(flat(90)), f"impulse_noise:{severity}").read(0)
    within = 5 * (IMPULSE[severity] / 2 / noisy.size) ** 0.5
    for level in (0, 255):
        assert (noisy == level).mean() == pytest.approx(IMPULSE[severity] / 2, abs=within)
    assert set(np.unique(noisy)) == {0, 90, 255}


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise"])
def test_noise_is_its_own_in_every_pixel_channel_and_frame(name: str) -> None:
    video = corrupt_video(video_of(flat(128), flat(128)), f"{name}:2")
    first, second = (video.read(t).astype(float) for t in range(2))
    pairs = [(first[..., 0], first[..., 1]), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1]), (first, second)]
    for one, other in pairs:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / one.size**0.5


def test_untouched_values_stay() -> None:
    frame = textured((100, 100))
    noisy = impulse_noise(frame, 5, np.random.default_rng(0))
    assert ((noisy == frame) | (noisy == 0) | (noisy == 255)).all()


@pytest.mark.parametrize("severity", MOTION)
def test_motion_blur_weights_are_half_a_gaussian(severity: int) -> None:
    """At angle 0: the pixel i to the right has the weight exp(-i^2 / 2 sigma^2) over their sum."""
    radius, sigma = MOTION[severity]
    steps = 2 * radius + 1
    frame = np.zeros((9, 100, 3), np.uint8)
    frame[4, 60] = 255
    weights = np.exp(-((np.arange(steps) / sigma) ** 2) / 2)
    expected = np.zeros((9, 100, 3), np.uint8)
    expected[4, 60 - np.arange(steps)] = np.rint(255 * weights / weights.sum())[:, None]
    np.testing.assert_array_equal(motion_blur(frame, severity, FixedAngle(0)), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("degrees", [-45.0, -30.3, 7.0, 45.0])
def test_motion_blur_is_a_correlation_with_the_line(degrees: float) -> None:
    """Against SciPy's, with the line as an image; rows increase downwards, and so do positive angles."""
    line = np.zeros((83, 83))
    for step in range(41):
        x, y = (int(np.ceil(step * part - 0.5)) for part in (np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))))
        line[41 + y, 41 + x] += stats.norm.pdf(step, 0, 15)
    frame = textured()
    expected = np.stack(
        [ndimage.correlate(frame[..., c].astype(float), line / line.sum(), mode="nearest") for c in range(3)], -1
    )  # fmt: skip
    blurred = motion_blur(frame, 5, FixedAngle(degrees))  # type: ignore[arg-type]
    assert np.abs(blurred - expected).max() < 0.501  # rounded


def test_each_frame_has_its_own_angle() -> None:
    """The centre of mass of a blurred pixel is at the sampled angle: both signs, within the range, not all alike."""
    frame = np.zeros((81, 81, 3), np.uint8)
    frame[40, 40] = 255
    video = corrupt_video(video_of(*[frame] * 30), "motion_blur:5")
    centres = [ndimage.center_of_mass(video.read(t)[..., 0]) for t in range(30)]
    angles = np.rad2deg([np.arctan2(40 - y, 40 - x) for y, x in centres])
    assert angles.min() > -46 and angles.max() < 46 and angles.min() < -20 and angles.max() > 20
    assert len(set(angles.round(1))) > 20


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (2, 70), (70, 3)])
def test_frames_of_any_size_are_frames(name: str, size: tuple[int, int]) -> None:
    frame = textured(size)
    result = corrupt_video(video_of(frame), f"{name}:5").read(0)
    assert result.shape == (*size, 3) and result.dtype == np.uint8
    assert np.array_equal(frame, textured(size))


def test_a_uniform_frame_is_not_changed_by_blur() -> None:
    np.testing.assert_array_equal(corrupt_video(video_of(flat(77, 5)), "motion_blur:5").read(0), flat(77, 5))


@pytest.mark.parametrize("name", NAMES)
def test_random_numbers_depend_on_names_only(name: str) -> None:
    frames = [textured(seed=t) for t in range(3)]
    video = corrupt_video(video_of(*frames), f"{name}:5")
    forward = [video.read(t) for t in range(3)]
    again = corrupt_video(video_of(*frames), f"{name}:5")
    for t in (2, 0, 1, 0):
        np.testing.assert_array_equal(again.read(t), forward[t])
    # Frame 00001 is the same where the video begins with it; of another video, or under another name, it is not.
    np.testing.assert_array_equal(corrupt_video(video_of(frames[1], first=1), f"{name}:5").read(0), forward[1])
    assert not np.array_equal(corrupt_video(video_of(frames[1], first=2), f"{name}:5").read(0), forward[1])
    assert not np.array_equal(corrupt_video(video_of(*frames, video_id="w"), f"{name}:5").read(1), forward[1])
    assert (video.video_id, video.frame_names, video.size) == ("v", ("00000", "00001", "00002"), (40, 56))


@pytest.mark.slow
def test_another_process_gives_the_same_frames() -> None:
    program = (
        "import sys; sys.path.insert(0, 'tests/cache'); from test_corruptions import *\n"
        "video = video_of(textured(), textured(seed=1))\n"
        "print([int(corrupt_video(video, f'{name}:3').read(1).astype(int).ravel() @ np.arange(40 * 56 * 3)) for name in NAMES])"
    )
    video = video_of(textured(), textured(seed=1))
    expected = [int(corrupt_video(video, f"{name}:3").read(1).astype(int).ravel() @ np.arange(40 * 56 * 3)) for name in NAMES]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, timeout=60
    )
    assert process.stdout.strip() == str(expected), process.stderr


@pytest.mark.parametrize("name", NAMES)
def test_severities_grow(name: str) -> None:
    frame = textured((100, 100))
    clean = ndimage.gaussian_filter(frame.astype(float), (2, 2, 0)).astype(np.uint8)
    changed = [np.abs(corrupt_video(video_of(clean), f"{name}:{s}").read(0) - clean.astype(float)).mean() for s in range(1, 6)]
    assert all(a < b for a, b in zip(changed, changed[1:]))


@pytest.mark.parametrize(
    "corruption", ["gaussian_noise", "gaussian_noise:0", "gaussian_noise:6", "fog:3", "", "motion_blur:5:1", ":5"]
)
def test_another_name_or_severity_is_one_line(corruption: str) -> None:
    with pytest.raises(InputError, match=r"no corruption .*there are: gaussian_noise, .*motion_blur, .*from 1 to 5"):
        parse_corruption(corruption)
    with pytest.raises(InputError, match="no corruption"):
        corrupt_video(video_of(flat(1, 4)), corruption)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corrupt")
    (folder / "train").mkdir()
    write_split(folder / "train", dict.fromkeys(("a", "b"), (5, True, EXPRESSIONS)))
    return folder


@pytest.fixture
def make_cache(root: Path, tmp_path: Path) -> Callable[..., Path]:
    def extract_flow(name: str, **options: Any) -> Path:
        assert not extract("mevis", root, "train", "flow", tmp_path / name, **options).failed
        return tmp_path / name

    return extract_flow


def test_a_cache_is_bound_to_its_corruption(make_cache: Callable[..., Path]) -> None:
    clean, noisy = make_cache("a.zarr", limit=1), make_cache("b.zarr", limit=1, corrupt="gaussian_noise:5")
    assert TrackCache(noisy).card.extra == {"corrupt": "gaussian_noise:5"} and TrackCache(clean).card.extra == {}
    assert content_digest(clean) != content_digest(noisy)
    for name, other in (("a.zarr", "gaussian_noise:5"), ("b.zarr", None), ("b.zarr", "gaussian_noise:4")):
        with pytest.raises(InputError, match=r"made with extra\.corrupt = "):
            make_cache(name, corrupt=other)


def test_a_run_in_parts_or_processes_is_the_same_cache(make_cache: Callable[..., Path]) -> None:
    whole = content_digest(make_cache("whole.zarr", corrupt="motion_blur:3"))
    make_cache("parts.zarr", corrupt="motion_blur:3", shard="2/2")
    assert content_digest(make_cache("parts.zarr", corrupt="motion_blur:3")) == whole
    assert content_digest(make_cache("jobs.zarr", corrupt="motion_blur:3", jobs=2)) == whole


def test_the_ground_truth_is_that_of_the_clean_video(make_cache: Callable[..., Path]) -> None:
    clean, noisy = (TrackCache(make_cache(f"{c}.zarr", limit=1, corrupt=c)) for c in (None, "impulse_noise:1"))
    (video_id,) = clean.video_ids()
    assert clean.read(video_id).ground_truth.masks == noisy.read(video_id).ground_truth.masks  # type: ignore[union-attr]
    np.testing.assert_array_equal(clean.overlap(video_id).gt_area, noisy.overlap(video_id).gt_area)


def test_only_caches_of_the_same_frames_are_combined(make_cache: Callable[..., Path]) -> None:
    clean, noisy = make_cache("a.zarr", limit=1), make_cache("b.zarr", limit=1, corrupt="shot_noise:1")
    for pair in ((clean, noisy), (noisy, clean)):
        with pytest.raises(InputError, match=r"same --corrupt"):
            TrackSource(pair)
    assert TrackSource([noisy, make_cache("c.zarr", limit=1, corrupt="shot_noise:1")]).video_ids()


def test_a_mirror_stays_corrupt_video(make_cache: Callable[..., Path], tmp_path: Path) -> None:
    mirror(make_cache("a.zarr", limit=1, corrupt="shot_noise:1"), tmp_path / "m.zarr")
    assert TrackCache(tmp_path / "m.zarr").card.extra == {"corrupt": "shot_noise:1", "mirrored": True}


def test_names_of_caches(tmp_path: Path) -> None:
    assert default_folder("mevis") == Path("out/cache/mevis")
    assert tracks_path(tmp_path, "train", "flow") == tmp_path / "train/flow.zarr"
    assert tracks_path(tmp_path, "train", "my.module:Tracker", "shot_noise:2") == tmp_path / "train/Tracker-shot_noise-2.zarr"
    assert text_path(tmp_path, "valid", "my.module:Encoder") == tmp_path / "valid/text-Encoder.zarr"


def test_corrupted_caches_are_next_to_the_clean_ones(root: Path, tmp_path: Path) -> None:
    for corrupt in (None, "gaussian_noise:1"):
        extract_all("mevis", root, splits=["train"], encoder="hashed", out=tmp_path, corrupt=corrupt)
    assert {p.name for p in (tmp_path / "train").iterdir()} == {
        "flow.zarr", "flow-gaussian_noise-1.zarr", "text-hashed.zarr"
    }  # fmt: skip


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    return lambda *words: call(monkeypatch, capsys, *words)


def test_the_commands_take_it(command: Callable[..., Result], root: Path, tmp_path: Path) -> None:
    options = ["--dataset", "mevis", "--root", root, "--split", "train"]
    assert command("extract", *options, "--limit", 1, "--out", tmp_path / "c.zarr", "--corrupt", "motion_blur:5") == (0, "")
    assert TrackCache(tmp_path / "c.zarr").card.extra == {"corrupt": "motion_blur:5"}
    assert command("extract-all", *options, "--encoder", "hashed", "--out", tmp_path, "--corrupt", "motion_blur:5") == (0, "")
    assert (tmp_path / "train/flow-motion_blur-5.zarr/card.json").exists()
    assert command("plan", *options, "--sample", 1, "--corrupt", "motion_blur:5") == (0, "")
    for name, rest in (("extract", ["--out", tmp_path / "d.zarr"]), ("extract-all", ["--out", tmp_path / "d"]), ("plan", [])):
        status, stderr = command(name, *options, *rest, "--corrupt", "fog:9")
        assert status == 1 and stderr.startswith("error: no corruption 'fog:9'") and "\n" not in stderr
    status, stderr = command("extract", *options, "--out", tmp_path / "c.zarr")
    assert status == 1 and "made with extra.corrupt = 'motion_blur:5', now it is None" in stderr


def test_real_frames(real_data: Path) -> None:
    """DAVIS: the noise has the published deviation where nothing is clipped; blur keeps the mean and smooths edges."""
    video = folder_video(real_data / "mevis-davis/valid_u/JPEGImages/blackswan", "blackswan")
    frame = video.read(0).astype(float)
    noise = corrupt_video(video, "gaussian_noise:1").read(0) - frame
    unclipped = (frame > 100) & (frame < 155)  # five standard deviations from either end
    assert unclipped.sum() > 100_000
    assert noise[unclipped].std() == pytest.approx(0.08 * 255, rel=0.01)
    assert noise[unclipped].mean() == pytest.approx(-0.5, abs=0.2)
    noisy = corrupt_video(video, "gaussian_noise:5").read(0)
    dark = frame < 13
    assert (noisy[dark] == 0).mean() == pytest.approx(float(stats.norm.cdf((1 - frame[dark]) / 255 / 0.38).mean()), abs=0.01)
    blurred = corrupt_video(video, "motion_blur:5").read(0).astype(float)
    assert blurred.mean() == pytest.approx(frame.mean(), rel=0.02)
    assert np.abs(np.diff(blurred, axis=1)).mean() < np.abs(np.diff(frame, axis=1)).mean() / 3
