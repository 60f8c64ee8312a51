"""The tracker `frames`: what it stores is what detectron2 would read, its bytes are known before, and N = 0 breaks nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from rvos_cache.cli import cli
from rvos_cache.contracts.tracker_checks import run_tracker_checks
from rvos_cache.datasets import open_dataset
from rvos_cache.errors import InputError
from rvos_cache.exchange.mirror import mirror
from rvos_cache.exchange.relabel import relabel
from rvos_cache.extraction import TrackWork, extract, extract_all
from rvos_cache.masks import RleMasks
from rvos_cache.media.resize import resize_frame, shortest_edge
from rvos_cache.settings import build
from rvos_cache.shapes import write_shapes
from rvos_cache.store import (
    CacheWriter,
    Card,
    SelectionRecord,
    TextCache,
    TrackCache,
    content_digest,
    open_backend,
    open_cache,
    read_card,
    verify,
    write_selections,
)
from rvos_cache.trackers import frames as frames_module
from rvos_cache.trackers.frames import FramesSettings, FramesTracker
from rvos_cache.types import Selection, Video
from rvos_select.cli import cli as select_cli

SMALL = {"short_side": 64}
OTHER = f"{__name__}:Larger"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames") / "shapes"
    write_shapes(folder, 3, 5)
    return folder


@pytest.fixture(scope="module")
def cache(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("caches") / "frames.zarr"
    extract("mevis", root, "train", "frames", out, overrides=SMALL)
    return out


def settings(**values: Any) -> FramesSettings:
    return build(FramesSettings, values, "tracker frames")


@pytest.mark.parametrize(
    ("size", "values", "stored"),
    [
        ((360, 640), {}, (480, 853)),
        ((360, 640), {"short_side": 448}, (448, 796)),
        ((1080, 1920), {}, (480, 853)),
        ((333, 500), {}, (480, 721)),
        ((640, 360), {"short_side": 448}, (796, 448)),
        ((100, 1000), {}, (133, 1333)),
        ((100, 1000), {"long_side": 1000}, (100, 1000)),
        ((100, 4000), {"short_side": 0}, (100, 4000)),
        ((1, 3), {"short_side": 0}, (1, 3)),
        ((1, 5000), {}, (1, 1333)),
        ((360, 640), {"square": 320}, (320, 320)),
        ((360, 640), {"square": 320, "short_side": 0}, (320, 320)),
    ],
)
def test_sizes_are_those_of_detectron2(size: tuple[int, int], values: dict[str, int], stored: tuple[int, int]) -> None:
    """ResizeShortestEdge: 360 x 640 becomes 448 x 796 (SSA), 480 x 853."""
    assert settings(**values).stored_size(size) == stored


def test_a_frame_has_one_size() -> None:
    with pytest.raises(InputError, match="square and short_side are given"):
        settings(square=320, short_side=480)
    # The settings of a card give the same settings again.
    for values in ({"square": 320}, {"short_side": 0}, {}):
        assert settings(**settings(**values).model_dump(mode="json")) == settings(**values)
    for wrong in ({"square": -1}, {"short_side": -2}, {"square": "large"}, {"long_side": 0}):
        with pytest.raises(InputError, match="tracker frames: setting"):
            settings(**wrong)


def test_bicubic_pixels() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    video = Video("v", ("00000",), (20, 30), lambda t: frame)
    for resample in ("bilinear", "bicubic"):
        (pixels,) = FramesTracker(settings(square=8, resample=resample)).track(video, []).features["rgb"]
        assert np.array_equal(pixels, np.asarray(Image.fromarray(frame).resize((8, 8), Image.Resampling[resample.upper()])))


def test_pixels_are_pillows_bilinear(cache: Path, root: Path) -> None:
    stored = TrackCache(cache)
    dataset = open_dataset("mevis", root, "train")
    for video_id in stored.video_ids():
        video = dataset.video(video_id)
        rgb = stored.feature(video_id, "rgb")
        h, w = shortest_edge(video.size, 64, 1333)
        assert rgb.dtype == np.uint8 and rgb.shape == (len(video), h, w, 3) and min(h, w) == 64 < min(video.size)
        for t in (0, len(video) - 1):
            expected = np.asarray(Image.fromarray(video.read(t)).resize((w, h), Image.Resampling.BILINEAR))
            assert np.array_equal(rgb[t], expected)
        assert np.array_equal(stored.feature(video_id, "rgb", slice(2, 4)), rgb[2:4])


def test_native_frames_are_the_frames(root: Path, tmp_path: Path) -> None:
    extract("mevis", root, "train", "frames", tmp_path / "n.zarr", overrides={"short_side": 0})
    dataset = open_dataset("mevis", root, "train")
    for video_id in dataset.video_ids():
        video = dataset.video(video_id)
        frames = np.stack([video.read(t) for t in range(len(video))])
        assert np.array_equal(TrackCache(tmp_path / "n.zarr").feature(video_id, "rgb"), frames)
    frame = frames[0]
    assert resize_frame(frame, frame.shape[:2]) is frame


def test_one_frame_is_in_memory_at_a_time() -> None:
    read = []

    def source(t: int) -> np.ndarray:
        read.append(t)
        return np.full((4, 6, 3), t, np.uint8)

    video = Video("v", tuple(f"{t:05d}" for t in range(9)), (4, 6), source)
    tracks = FramesTracker(settings(square=2)).track(video, [])
    assert read == [] and tracks.masks.shape == (0, 9) and tracks.tokens.shape == (0, 9, 0)
    frames = iter(tracks.features["rgb"])
    next(frames)
    assert read == [0]
    assert [int(frame[0, 0, 0]) for frame in tracks.features["rgb"]] == list(range(9))


@pytest.mark.parametrize("values", [{"short_side": 0}, {"square": 16}], ids=str)
def test_the_contract_of_trackers_is_kept(values: dict[str, int]) -> None:
    results = list(run_tracker_checks("frames", values))
    assert [r.title for r in results if r.status != "ok"] == []


@pytest.mark.parametrize("values", [{"short_side": 0}, {"square": 320}, {"short_side": 160, "long_side": 170}], ids=str)
def test_an_extraction_has_the_bytes_of_the_plan(values: dict[str, int], root: Path, tmp_path: Path) -> None:
    work = TrackWork("mevis", root, "train", "frames", values)
    videos = [work.source.video(video_id) for video_id in work.source.video_ids()]
    planned = work.model.planned_bytes([(video.size, len(video)) for video in videos])
    out = tmp_path / "c.zarr"
    extract("mevis", root, "train", "frames", out, overrides=values)
    assert planned.current == next(f"{name}={value}" for name, value in values.items())
    exact = sum(path.stat().st_size for video_id in work.source.video_ids() for path in chunks(out, video_id))
    assert planned.sizes[planned.value] == exact
    # All files of the cache. Folders, three for each frame, are not counted: what they take depends on the file system.
    assert open_backend(out).size() == pytest.approx(exact, rel=0.01)


def chunks(out: Path, video_id: str) -> list[Path]:
    """Files of the stored frames."""
    return [p for p in (out / "videos" / video_id / "features" / "rgb").rglob("*") if p.is_file() and p.name != "zarr.json"]


def test_bytes_of_the_specification() -> None:
    """One MeViS video of 79 frames of 360 x 640, and all 158,474 frames (ssa.md, section 10.1)."""
    planned = FramesTracker(settings()).planned_bytes([((360, 640), 79)])
    assert planned.formatted() == {
        "short_side=480": "97.04 MB", "short_side=0": "54.61 MB", "short_side=448": "84.52 MB", "short_side=360": "54.61 MB",
        "square=448": "47.57 MB", "square=320": "24.27 MB",
    }  # fmt: skip
    assert planned.current == "short_side=480"
    assert FramesTracker(settings()).planned_bytes([((360, 640), 158_474)]).sizes["short_side=0"] == pytest.approx(
        109.5e9, rel=1e-3
    )
    own = FramesTracker(settings(square=96)).planned_bytes([((360, 640), 79)])
    assert own.current == "square=96" == next(iter(own.sizes)) and own.sizes["square=96"] == 79 * (96 * 96 * 3 + 4)


def test_plan_shows_what_fits(root: Path) -> None:
    words = ["plan", "--dataset", "mevis", "--root", str(root), "--split", "train", "--tracker", "frames", "--sample", "1"]
    result = CliRunner().invoke(cli, [*words, "--budget", "30MB"])
    assert result.output.splitlines()[0].endswith(", this run") and result.output.startswith("short_side=480: ")
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith("short_side=480 needs ") and "these fit: short_side=0 (" in str(result.exception)


def test_commands_read_a_cache_without_tracks(cache: Path, root: Path, tmp_path: Path) -> None:
    assert list(verify(cache)) == [] and len(content_digest(cache)) == 32
    assert read_card(cache).feature_specs == [frames_module.RGB.to_json()]
    result = CliRunner().invoke(cli, ["info", str(cache)])
    assert result.exit_code == 0 and "feature: rgb (T, h, w, 3) uint8, by frame" in result.output
    opened = open_cache(cache)
    record = opened.read(opened.video_ids()[0])
    assert record.tracks.masks.shape[0] == 0 and record.overlap.inter.shape[0] == 0 < record.overlap.inter.shape[1]
    report = extract("mevis", root, "train", "frames", cache, overrides=SMALL)
    assert not report.done and len(report.skipped) == 2
    relabel(cache, tmp_path / "r.zarr")
    assert content_digest(tmp_path / "r.zarr") == content_digest(cache)
    with pytest.raises(InputError, match="cannot be mirrored; extract split train-mirror instead"):
        mirror(cache, tmp_path / "m.zarr")
    scores = CliRunner().invoke(select_cli, ["oracle", "--cache", str(cache)])
    assert scores.exit_code == 1 and "tracker frames makes no tracks" in str(scores.exception)
    with pytest.raises(InputError, match="other settings|short_side"):
        extract("mevis", root, "train", "frames", cache, overrides={"short_side": 32})


def test_drawn_masks_are_merged_without_tracks(cache: Path, tmp_path: Path) -> None:
    """As a selector that predicts its own masks from the frames."""
    tracks = TrackCache(cache)
    card = Card(
        kind="selections", dataset="mevis", split="train", producer="ssa", root=tracks.card.root, extra={"threshold": 0.5}
    )
    writer = CacheWriter(tmp_path / "s.zarr", card)
    for video_id in tracks.video_ids():
        info = tracks.info(video_id)
        dense = np.zeros((2, info.frames, *info.size), bool)
        dense[0, :, :4] = dense[1, :, :, :3] = True
        own_masks = RleMasks.from_dense(dense)
        scores, candidates = np.array([0.9, 0.2], np.float32), np.ones(2, bool)
        selections = tuple(Selection(e.expression_id, scores, candidates, own_masks) for e in info.expressions)
        write_selections(writer, SelectionRecord(video_id, info.frame_names, info.size, selections, info.expressions))
    words = ["merge", "--selections", str(tmp_path / "s.zarr"), "--cache", str(cache), "--out", str(tmp_path / "png")]
    result = CliRunner().invoke(select_cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    video_id = tracks.video_ids()[0]
    info = tracks.info(video_id)
    mask = np.asarray(Image.open(tmp_path / "png" / video_id / info.expressions[0].expression_id / f"{info.frame_names[0]}.png"))
    assert mask[:4].all() and not mask[4:].any()


@pytest.mark.slow
def test_also_writes_a_cache_beside_the_first(root: Path, tmp_path: Path) -> None:
    options = {"splits": ["train"], "tracker": "flow", "out": tmp_path, "also": {"frames": SMALL}}
    reports = extract_all("mevis", root, **options)
    assert list(reports) == ["train/flow", "train/frames", "train/text"]
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["flow.zarr", "frames.zarr", "text-hashed.zarr"]
    videos = TrackCache(tmp_path / "train" / "flow.zarr").video_ids()
    frames = TrackCache(tmp_path / "train" / "frames.zarr")
    assert frames.video_ids() == videos == TextCache(tmp_path / "train" / "text-hashed.zarr").video_ids()
    assert frames.card.settings["short_side"] == 64
    again = extract_all("mevis", root, **options)
    assert all(not report.done and len(report.skipped) == len(videos) for report in again.values())
    # Without settings, as a list.
    other = extract_all("mevis", root, splits=["valid_u"], tracker="frames", overrides=SMALL, out=tmp_path, also=[OTHER])
    assert list(other) == ["valid_u/frames", "valid_u/Larger", "valid_u/text"]


def test_the_command_takes_other_trackers_and_their_settings(root: Path, tmp_path: Path) -> None:
    words = ["extract-all", "--dataset", "mevis", "--root", str(root), "--split", "train", "--out", str(tmp_path)]
    words += ["--tracker", "frames", "--set", "square=8", "--also", OTHER]
    words += ["--also-set", f"{OTHER}.square=24", "--also-set", f"{OTHER}.long_side=99"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0 and "train/Larger: 2 done, 0 were there, 0 failed" in result.output, result.output
    card = read_card(tmp_path / "train" / "Larger.zarr")
    assert card.settings == {"short_side": 0, "long_side": 99, "square": 24, "resample": "bilinear"}
    assert read_card(tmp_path / "train" / "frames.zarr").settings["square"] == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--also", "frames", "--also-set", "frames.short=9"], "tracker frames: no setting 'short'"),
        (
            ["--also", "frames", "--also-set", "frame.short_side=9"],
            r"--also-set wants TRACKER.name=value .*\(frames\), got 'frame.",
        ),
        (["--also-set", "frames.short_side=9"], r"with a tracker of --also \(none\)"),
        (["--also", "frames", "--also", "frames"], "--also frames is given twice"),
        (["--also", "flow"], r"--also flow: another tracker of this run writes .*flow\.zarr too"),
        (["--also", "frmes"], "'frmes'"),
        (["--also", "vita"], "give --also-set vita.checkpoint="),
        (["--tracker", "frames", "--budget", "1kB"], "short_side=480 needs"),
    ],
)
def test_what_cannot_be_extracted_beside_is_one_line_before_anything_runs(
    words: list[str], message: str, root: Path, tmp_path: Path
) -> None:
    base = ["extract-all", "--dataset", "mevis", "--root", str(root), "--split", "train", "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(cli, [*base, *words])
    assert isinstance(result.exception, InputError) and "\n" not in str(result.exception)
    with pytest.raises(InputError, match=message):
        raise result.exception
    assert not (tmp_path / "o").exists()


def test_all_trackers_share_a_budget(root: Path, tmp_path: Path) -> None:
    names: dict[str, Any] = {"splits": ["train"], "tracker": "frames", "overrides": {"square": 8}, "out": tmp_path / "o"}
    other = {OTHER: {"square": 16}}
    work = TrackWork("mevis", root, "train", "frames", {"square": 8})
    count = sum(len(work.source.video(video_id)) for video_id in work.source.video_ids())
    small, large = count * (8 * 8 * 3 + 4), count * (16 * 16 * 3 + 4)
    with pytest.raises(InputError, match=r"square=16 needs .*, of which other trackers need "):
        extract_all("mevis", root, also=other, budget=small + large - 1, **names)
    assert not (tmp_path / "o").exists()
    assert "train/Larger" in extract_all("mevis", root, also=other, budget=small + large, **names)


class Larger(FramesTracker):
    """The same tracker with another file name of its cache."""
