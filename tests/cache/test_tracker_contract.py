"""What extraction and everything behind it assume of every tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sam2
import tiny_vita

from rvos_cache.errors import InputError
from rvos_cache.extraction import extract_video
from rvos_cache.masks import RleMasks
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, Card, TrackCache, write_tracks
from rvos_cache.trackers import TRACKERS, tracker_class
from rvos_cache.types import VIDEO, Expression, GroundTruth, TrackSet, Video

# Settings that make a tracker small enough to test; one with two ways of working has a line for each. What is a function is
# called when it is wanted: it writes a checkpoint.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("flow", {}),
    ("flow", {"mode": "full"}),
    ("sam2-grid", {"checkpoint": tiny_sam2.shared_checkpoint, **tiny_sam2.GRID}),
    (
        "sam2-box",
        {"checkpoint": tiny_sam2.shared_checkpoint, "grounding_checkpoint": tiny_sam2.shared_grounding, **tiny_sam2.BOX},
    ),
    ("sam2-gt", {"checkpoint": tiny_sam2.shared_checkpoint}),
    ("vita", {"checkpoint": tiny_vita.shared_checkpoint, **tiny_vita.SMALL}),
    ("vita", {"checkpoint": tiny_vita.shared_checkpoint, **tiny_vita.SMALL, "profile": "exact"}),
]
SENTENCES = ("the red square", "собака 這隻鳥", "the square that moves " * 100)
SAID = tuple(Expression("v", str(i), text, ()) for i, text in enumerate(SENTENCES))
SIZE = (41, 63)


def scene(frames: int, moves: bool, size: tuple[int, int] = SIZE) -> tuple[Video, GroundTruth]:
    """A textured background, and a square that moves right and is gone in the last frame; its frames cannot be written."""
    rng = np.random.default_rng(0)
    truth = np.zeros((1, frames, *size), bool)
    ground = rng.integers(70, 90, (*size, 3), dtype=np.uint8)
    pictures = np.repeat(ground[None], frames, 0) if moves else np.full((frames, *size, 3), 90, np.uint8)
    for t in range(frames - 1 if moves else 0):
        truth[0, t, 8:26, 4 + 4 * t : 22 + 4 * t] = True
        pictures[t][truth[0, t]] = (220, 40, 40)
    pictures.flags.writeable = False
    video = Video("v", tuple(f"{t:05d}" for t in range(frames)), size, lambda t: pictures[t])
    return video, GroundTruth(("0",), RleMasks.from_dense(truth), np.ones(frames, bool))


def run(name: str, overrides: dict[str, Any], frames: int, moves: bool = True, size: tuple[int, int] = SIZE) -> TrackSet:
    kind = tracker_class(name)
    video, truth = scene(frames, moves, size)
    return extract_video(kind(build(kind.Settings, overrides, name)), video, SAID, truth).tracks


def test_every_tracker_is_tested() -> None:
    assert {name for name, _ in CASES} == set(TRACKERS)


@pytest.fixture(scope="module", params=CASES, ids=[f"{n}-{'-'.join(v for v in o.values() if type(v) is str)}" for n, o in CASES])
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    name, overrides = request.param
    return name, {setting: value() if callable(value) else value for setting, value in overrides.items()}


@pytest.fixture(scope="module")
def found(case: tuple[str, dict[str, Any]]) -> TrackSet:
    return run(*case, 7)


def test_shapes_types_and_limits(case: tuple[str, dict[str, Any]], found: TrackSet) -> None:
    kind = tracker_class(case[0])
    settings = build(kind.Settings, case[1], case[0])
    n, t = found.masks.shape
    assert 0 < n <= getattr(settings, "max_tracks", n) and t == 7
    assert found.masks.size == SIZE
    assert found.tokens.shape == (n, 7, kind(settings).channels) and found.tokens.dtype == np.float16
    assert found.presence.dtype == np.float16
    assert ((found.presence >= 0) & (found.presence <= 1)).all()
    assert 0 < kind.label_iou < 1
    assert set(found.features) == {spec.name for spec in kind(settings).feature_specs}
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in kind(settings).weight_hashes().items())


def test_limits_of_tracks_are_kept(case: tuple[str, dict[str, Any]], found: TrackSet) -> None:
    limits = {field: 1 for field in tracker_class(case[0]).Settings.model_fields if field.endswith("max_tracks")}
    assert run(case[0], {**case[1], **limits}, 7).masks.shape[0] == (1 if limits else found.masks.shape[0])


def test_what_is_not_seen_is_not_present(found: TrackSet) -> None:
    area = found.masks.area()
    assert (area == 0).any() and (area > 0).any()
    assert (found.presence[area == 0] == 0).all()
    assert (found.presence[area > 0] > 0).all()


def test_prompts_point_into_the_video(case: tuple[str, dict[str, Any]], found: TrackSet) -> None:
    n = len(found.origin)
    assert found.prompt.dtype == np.int32 and found.prompt_frame.dtype == np.int32 and found.prompt_box.dtype == np.float32
    if not tracker_class(case[0]).reads_expressions:
        assert (found.prompt == VIDEO).all()
    assert ((found.prompt >= VIDEO) & (found.prompt < len(SENTENCES))).all()
    assert ((found.prompt_frame >= 0) & (found.prompt_frame < 7)).all()
    x0, y0, x1, y1 = found.prompt_box.T
    assert ((x0 >= 0) & (x0 < x1) & (x1 <= SIZE[1]) & (y0 >= 0) & (y0 < y1) & (y1 <= SIZE[0])).all()
    assert all(found.origin) and n == len(found.prompt_box)


def test_a_new_tracker_finds_the_very_same(case: tuple[str, dict[str, Any]], found: TrackSet) -> None:
    again = run(*case, 7)
    assert found.masks == again.masks
    for name in ("tokens", "presence", "prompt", "prompt_frame", "prompt_box"):
        assert np.array_equal(getattr(found, name), getattr(again, name)), name


@pytest.mark.parametrize(("frames", "moves", "size"), [(1, True, SIZE), (4, False, SIZE), (1, False, (1, 1)), (3, True, (30, 3))])
def test_odd_videos_are_legal(case: tuple[str, dict[str, Any]], frames: int, moves: bool, size: tuple[int, int]) -> None:
    """One frame; nothing to find; one pixel; three columns."""
    few = run(*case, frames, moves, size)
    assert few.masks.shape[1] == frames and few.masks.size == size
    if not moves:
        assert (few.masks.area().sum(1) > 0).all()


def test_the_store_gives_it_back(case: tuple[str, dict[str, Any]], found: TrackSet, tmp_path: Path) -> None:
    kind = tracker_class(case[0])
    video, truth = scene(7, True)
    made = kind(build(kind.Settings, case[1], case[0]))
    card = Card(kind="tracks", dataset="d", split="s", producer=case[0], channels=made.channels)
    record = extract_video(made, video, SAID, truth)
    write_tracks(CacheWriter(tmp_path / "c.zarr", card), record)
    read = TrackCache(tmp_path / "c.zarr").read("v").tracks
    assert read.masks == found.masks and np.array_equal(read.tokens, found.tokens)


def test_a_setting_that_is_none_is_named(case: tuple[str, dict[str, Any]]) -> None:
    with pytest.raises(InputError, match="no setting 'nothing_like_it'"):
        build(tracker_class(case[0]).Settings, {**case[1], "nothing_like_it": 1}, case[0])
