"""The flow tracker on rendered videos with known objects, and its parts against values computed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks, from_coco
from rvos_cache.overlap import count_overlap, iou
from rvos_cache.settings import build
from rvos_cache.trackers import tracker_class
from rvos_cache.trackers.flow import FlowSettings, FlowTracker, proposals, tokens
from rvos_cache.trackers.flow import motion as flows
from rvos_cache.trackers.flow.appearance import Fourier, Ridge
from rvos_cache.trackers.flow.full import enlarge, full_tracks
from rvos_cache.trackers.flow.mask_frames import FrameMask, MaskFrames
from rvos_cache.trackers.flow.propagate import similarity
from rvos_cache.trackers.flow.stitching import Meetings, distinct, overlaps, stitch
from rvos_cache.trackers.spool import ArraySpool
from rvos_cache.types import VIDEO, GroundTruth, TrackSet, Video

H, W = 96, 160
RED, BLUE = (215, 40, 40), (45, 85, 225)


def texture(height: int = H + 40, width: int = W + 80) -> NDArray[np.float32]:
    """A textured background with little contrast."""
    rng = np.random.default_rng(7)
    ground = np.full((height, width, 3), 110, np.float32)
    for sigma, strength in ((12, 20), (4, 12), (1.2, 7)):
        noise = cv2.GaussianBlur(rng.standard_normal((height, width, 3)).astype(np.float32), (0, 0), sigma)
        ground += noise / noise.std() * strength * np.float32([1, 0.95, 0.9])
    return ground


def render(
    boxes: Callable[[int], list[tuple[float, float, float, tuple[int, int, int]]]], frames: int, pan: float = 0.0
) -> tuple[Video, GroundTruth]:
    """Squares (centre x, centre y, half side, colour) per frame on a background that moves `pan` pixels to the left."""
    ground = texture()
    pictures, masks = [], np.zeros((len(boxes(0)), frames, H, W), bool)
    for t in range(frames):
        move = np.float32([[1, 0, -20 - pan * t], [0, 1, -20]])
        picture = cv2.warpAffine(ground, move, (W, H))
        for k, (x, y, r, colour) in enumerate(boxes(t)):
            x0, x1, y0, y1 = (int(np.clip(v, 0, m)) for v, m in ((x - r, W), (x + r, W), (y - r, H), (y + r, H)))
            picture[y0:y1, x0:x1] = colour
            masks[: k + 1, t, y0:y1, x0:x1] = False
            masks[k, t, y0:y1, x0:x1] = True
        pictures.append(np.clip(picture, 0, 255).astype(np.uint8))
    video = Video("rendered", tuple(f"{t:05d}" for t in range(frames)), (H, W), pictures.__getitem__)
    ids = tuple(str(k) for k in range(len(masks)))
    return video, GroundTruth(ids, RleMasks.from_dense(masks), np.ones(frames, bool))


def track(video: Video, **settings: object) -> TrackSet:
    return FlowTracker(build(FlowSettings, settings, "test")).track(video, ())


def best(tracks: TrackSet, truth: GroundTruth) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """IoU per object and frame of the object's best track, and that track's index."""
    values = iou(count_overlap(tracks.masks, truth))
    indices = values.mean(-1).argmax(0)
    return np.stack([values[k, a] for a, k in enumerate(indices)]), indices


def value_of(soft: NDArray[np.float16], low: float, high: float) -> float:
    """The number that soft bins between `low` and `high` represent: the weighted mean of their centres."""
    assert soft.sum() == pytest.approx(1, abs=2e-3)
    return float(soft.astype(float) @ np.linspace(low, high, len(soft)))


def test_moving_squares_are_tracked_under_a_panning_camera() -> None:
    video, truth = render(lambda t: [(30 + 2 * t, 30, 9, RED), (120 - 2 * t, 70, 11, BLUE)], 20, pan=1.0)
    tracks = track(video)
    values, indices = best(tracks, truth)
    assert values.mean(1).min() > 0.85
    assert len(set(indices)) == 2
    assert tracks.tokens.shape == (tracks.masks.shape[0], 20, 256)
    assert (tracks.prompt == VIDEO).all()
    assert set(tracks.origin) == {"flow"}
    assert tracks.masks.shape[0] <= 24
    right, left = (value_of(tracks.tokens[k, 10, tokens.SLICES["velocity"]][:11], -0.95, 0.95) for k in indices)
    # 2 pixels to the right plus 1 of the pan against the ground; 2 to the left minus 1.
    assert right == pytest.approx(np.tanh(3 / (0.02 * np.hypot(H, W))), abs=0.08)
    assert left == pytest.approx(np.tanh(-1 / (0.02 * np.hypot(H, W))), abs=0.08)


def test_an_object_that_leaves_has_empty_masks_and_no_presence_afterwards() -> None:
    video, truth = render(lambda t: [(110 + 4 * t, 40, 9, RED), (40, 70, 10, BLUE)], 26)
    tracks = track(video)
    values, indices = best(tracks, truth)
    assert values.mean(1).min() > 0.85
    hidden = tracks.masks.area()[indices[0]] == 0
    assert hidden[16:].all()
    assert (tracks.presence[indices[0]][hidden] == 0).all()
    assert (tracks.presence[indices[0]][:8] > 0.5).all()
    assert (tracks.tokens[indices[0], hidden, tokens.SLICES["visible"]][:, 0] == 0).all()


def test_an_object_hidden_for_six_frames_comes_back_in_the_same_track() -> None:
    def boxes(t: int) -> list[tuple[float, float, float, tuple[int, int, int]]]:
        return [(30 + 4 * t, 48, 8, RED), (88, 48, 17, (70, 62, 52))]

    video, truth = render(boxes, 30)
    values, _ = best(track(video), truth)
    hidden = truth.masks.area()[0] == 0
    assert hidden.sum() >= 4
    assert values[0].mean() > 0.8


def test_two_objects_of_one_appearance_that_touch_stay_two_tracks() -> None:
    video, truth = render(lambda t: [(40 + 2 * t, 40, 9, RED), (110 - 2 * t, 52, 9, RED)], 34)
    values, indices = best(track(video), truth)
    assert len(set(indices)) == 2
    assert values.mean(1).min() > 0.7


@pytest.mark.parametrize("mode", ["small", "full"])
@pytest.mark.parametrize(("frames", "blank"), [(1, False), (1, True), (3, True)])
def test_short_and_blank_videos_are_legal(mode: str, frames: int, blank: bool) -> None:
    video, _ = render(lambda t: [(60, 40, 12, RED)], frames)
    if blank:
        grey = np.full((H, W, 3), 120, np.uint8)
        video = Video("blank", video.frame_names, (H, W), lambda t: grey)
    tracks = track(video, mode=mode)
    n = tracks.masks.shape[0]
    assert tracks.tokens.shape == (n, frames, 256)
    assert np.isfinite(tracks.tokens).all()
    assert blank or n >= 1
    assert ((tracks.presence >= 0) & (tracks.presence <= 1)).all()
    if blank and mode == "small":
        assert n == 0


def test_tiny_and_odd_frames() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (3, 11, 13, 3)).astype(np.uint8)
    video = Video("tiny", ("a", "b", "c"), (11, 13), lambda t: pictures[t])
    for mode in ("small", "full"):
        assert track(video, mode=mode).masks.size == (11, 13)


def textured_patch(frames: int, visible: int) -> tuple[Video, GroundTruth]:
    """A textured patch that moves 5 pixels per frame and is there in the first `visible` frames only."""
    rng = np.random.default_rng(3)
    patch = cv2.GaussianBlur(rng.integers(0, 255, (36, 44, 3)).astype(np.float32), (0, 0), 1.5) * [1.3, 0.6, 0.5] + 40
    background = cv2.resize(texture(), (400, 260))
    pictures, masks = [], np.zeros((1, frames, 240, 320), bool)
    for t in range(frames):
        picture = background[10:250, 20:340].copy()
        if t < visible:
            picture[100:136, 60 + 5 * t : 104 + 5 * t] = patch
            masks[0, t, 100:136, 60 + 5 * t : 104 + 5 * t] = True
        pictures.append(np.clip(picture, 0, 255).astype(np.uint8))
    video = Video("full", tuple(f"{t:05d}" for t in range(frames)), (240, 320), pictures.__getitem__)
    return video, GroundTruth(("0",), RleMasks.from_dense(masks), np.ones(frames, bool))


def test_full_mode_tracks_a_textured_object_and_keeps_its_limits() -> None:
    video, truth = textured_patch(8, 8)
    tracks = track(video, key_frames=1, prompts_per_key=3, max_tracks=3)
    assert tracks.masks.shape[0] <= 3
    values, indices = best(tracks, truth)
    # Both directions of time: the prompt is in frame 4.
    assert tracks.prompt_frame[indices[0]] == 4 and values[0].min() > 0.8
    expected = truth.masks.boxes()[0, 4]
    expected[2:] += expected[:2]
    np.testing.assert_allclose(tracks.prompt_box[indices[0]], expected, atol=4)


def test_full_mode_loses_an_object_that_disappears() -> None:
    video, truth = textured_patch(13, 8)
    tracks = track(video, key_frames=1, prompts_per_key=3, max_tracks=3)
    values, indices = best(tracks, truth)
    k = indices[0]
    assert values[0, :8].min() > 0.8
    # Three doubtful frames in a row, then no mask.
    assert (tracks.masks.area()[k, 11:] == 0).all() and (tracks.presence[k, 11:] == 0).all()
    assert (tracks.presence[k, :8] > 0.5).all()


def test_full_mode_returns_the_most_confident_tracks_first() -> None:
    video, _ = textured_patch(8, 8)
    motion = flows.measure(video.read, 8, 1)
    _, confidence, starts = full_tracks(motion, video.size, FlowSettings(key_frames=2, prompts_per_key=4))
    assert len(starts) > 2 and set(starts.tolist()) == {2, 6}
    assert (np.diff(confidence.mean(1)) <= 0).all() and (np.diff(confidence.mean(1)) < 0).any()


def test_the_scores_of_proposals_rank_an_object_above_other_regions() -> None:
    video, truth = textured_patch(4, 4)
    motion = flows.measure(video.read, 4, 1)
    residual = motion.flow(1, 1) - flows.camera_field(motion.background(1, 1), motion.size)
    cue = proposals.cues(motion.frame(1), residual, flows.residual_speed(motion, 1))
    mask = truth.masks.decode(0, 1)
    half, shifted, elsewhere = mask.copy(), np.roll(mask, 20, 1), np.roll(mask, 90, 0)
    half[:118] = False
    scores = [proposals.score(region, cue) for region in (mask, half, shifted, elsewhere)]
    assert scores[0] == max(scores) > 1 and scores[3] == min(scores) < 1
    best_score, best_mask = proposals.propose(motion.frame(1), cue, 1)[0]
    assert (best_mask & mask).sum() / (best_mask | mask).sum() > 0.7 and best_score > 1


def test_masks_are_enlarged_with_interpolated_outlines() -> None:
    ys, xs = np.mgrid[0:120, 0:160]
    disk = (ys - 60) ** 2 + (xs - 70) ** 2 <= 40**2
    small = cv2.resize(disk.astype(np.float32), (40, 30), interpolation=cv2.INTER_AREA) > 0.5
    nearest = small.repeat(4, 0).repeat(4, 1)
    interpolated = enlarge(small, (120, 160))
    assert (interpolated ^ disk).sum() < 0.9 * (nearest ^ disk).sum()
    assert enlarge(disk, (120, 160)) is disk


@pytest.mark.parametrize("size", [(20, 30), (1, 1), (3, 200), (24, 900), (900, 24)])
@pytest.mark.parametrize("frames", [1, 2])
def test_full_mode_accepts_frames_of_any_shape(size: tuple[int, int], frames: int) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (frames, *size, 3)).astype(np.uint8)
    for pictures in (noise, np.zeros_like(noise)):
        tracks = track(Video("odd", tuple("ab"[:frames]), size, pictures.__getitem__), mode="full")
        assert tracks.masks.size == size
        assert np.isfinite(tracks.tokens).all()


def strips(columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Masks (N, T, 6, 60) of a full-height strip from x = 6 * column; column -1 is an empty mask."""
    masks = np.zeros((*columns.shape, 6, 60), bool)
    for k, t in np.argwhere(columns >= 0):
        masks[k, t, :, 6 * columns[k, t] : 6 * columns[k, t] + 6] = True
    return masks


def test_tracks_are_stitched_where_they_meet_and_only_there() -> None:
    # Track 0 (prompt 0) drifts off to 9 after frame 3; track 1 (prompt 5) is at 2 from frame 2 on; track 2 never meets them.
    columns = np.array([[2, 2, 2, 2, 9, 9, 9], [-1, -1, 2, 2, 2, 2, 2], [7, 7, 7, 7, 7, 7, 7]])
    pairs = [overlaps(frame) for frame in strips(columns).transpose(1, 0, 2, 3)]
    assert pairs[2][0, 1] == 1 and pairs[5][0, 1] == 0 and pairs[0][1, 1] == 0
    starts = np.array([0, 5, 5], np.int32)
    meetings = Meetings(starts)
    for t, iou_of_frame in enumerate(pairs):
        meetings.add(t, iou_of_frame)
    # Frames 2 and 3 have an IoU of 1, both are half a frame from the middle, and the first of equal frames counts.
    assert meetings.iou[0, 1] == meetings.iou[1, 0] == 1 and meetings.frame[0, 1] == 2
    assert meetings.iou[0, 2] == meetings.iou[1, 2] == 0
    source = stitch(meetings, starts, 7, 0.3)
    assert columns[source[0], np.arange(7)].tolist() == [2] * 7
    assert source[0, 0] == 0 and source[1, 5] == 1
    assert columns[source[1], np.arange(7)].tolist() == [2] * 7
    assert source[2].tolist() == [2] * 7
    # The two stitched tracks are equal; the order decides which of them is kept.
    visible = columns[source, np.arange(7)] >= 0
    for order, count, kept in (([1, 0, 2], 5, [1, 2]), ([0, 1, 2], 5, [0, 2]), ([1, 0, 2], 1, [1])):
        assert distinct(pairs.__getitem__, source, visible, np.array(order), 0.8, count).tolist() == kept


def test_stitching_agrees_with_a_plain_loop_over_all_frames() -> None:
    rng = np.random.default_rng(5)
    frames, starts = 24, np.array([12, 12, 4, 4, 4, 20, 20], np.int32)
    pairs = rng.random((frames, 7, 7)).astype(np.float32) ** 3
    meetings = Meetings(starts)
    for t in range(frames):
        meetings.add(t, pairs[t])
    for i, j in np.argwhere(starts[:, None] != starts):
        low, high = sorted((int(starts[i]), int(starts[j])))
        between = pairs[low : high + 1, i, j].astype(float)
        fit = between - 0.1 * np.abs(np.arange(low, high + 1) - (low + high) / 2) / (high - low)
        assert meetings.iou[i, j] == between.max() and meetings.frame[i, j] == low + fit.argmax()


def test_many_tracks_are_compared_in_passes() -> None:
    """Track k is column k // 2, so every second one is a duplicate of the one before."""
    columns = np.repeat(np.arange(20) // 2 % 10, 3).reshape(20, 3)
    pairs = [overlaps(frame) for frame in strips(columns).transpose(1, 0, 2, 3)]
    source = np.repeat(np.arange(20)[:, None], 3, 1)
    kept = distinct(pairs.__getitem__, source, np.ones((20, 3), bool), np.arange(20), 0.8, 7)
    assert kept.tolist() == [0, 2, 4, 6, 8, 10, 12]


def test_masks_of_a_frame_are_read_as_they_were_written() -> None:
    rng = np.random.default_rng(6)
    masks = MaskFrames(ArraySpool(100), 4, (13, 21))
    pictures = rng.random((3, 4, 13, 21)) > 0.5
    expected = np.zeros_like(pictures)
    for t, direction, track, window in (
        (1, -1, 3, (2, 9, 4, 20)),
        (1, 0, 0, (0, 13, 0, 21)),
        (1, 1, 2, (12, 13, 0, 5)),
        (2, 1, 1, (0, 4, 3, 9)),
    ):
        y0, y1, x0, x1 = window
        masks.write(t, direction, [FrameMask(track, window, pictures[t, track, y0:y1, x0:x1])])
        expected[t, track, y0:y1, x0:x1] = pictures[t, track, y0:y1, x0:x1]
    masks.write(0, 1, [])
    assert np.array_equal([masks.frame(t) for t in range(3)], expected)


def test_small_mode_refuses_large_frames() -> None:
    grey = np.full((480, 854, 3), 128, np.uint8)
    with pytest.raises(InputError, match="480x854.*mode=full"):
        track(Video("v", ("0", "1"), (480, 854), lambda t: grey), mode="small")


def test_wrong_settings_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="max_tracks"):
        build(FlowSettings, {"max_track": 3}, "--set")
    assert tracker_class("flow") is FlowTracker
    assert FlowTracker(FlowSettings()).weight_hashes() == {}


def test_the_camera_motion_is_estimated_and_the_residual_is_the_objects_motion() -> None:
    video, truth = render(lambda t: [(70 + 3 * t, 48, 14, RED)], 4, pan=2.0)
    motion = flows.measure(video.read, 4, 1)
    moved = flows.apply(motion.camera[1], np.array([[80.0, 20.0]]))
    np.testing.assert_allclose(moved, [[78, 20]], atol=0.4)
    residual = flows.residual_speed(motion, 1)
    # A flat square has flow at its rim only (its own 3 pixels plus the pan's 2), and little in its middle.
    mask = truth.masks.decode(0, 1)
    rim = mask & ~cv2.erode(mask.astype(np.uint8), np.ones((5, 5))).astype(bool)
    assert np.percentile(residual[rim], 90) > 3
    assert np.median(residual[~mask]) < 0.6


def test_similarity_recovers_rotation_scale_and_translation_despite_outliers() -> None:
    rng = np.random.default_rng(2)
    points = rng.uniform(0, 60, (80, 2)).astype(np.float32)
    true = np.array([[1.03 * np.cos(0.1), -1.03 * np.sin(0.1), 4], [1.03 * np.sin(0.1), 1.03 * np.cos(0.1), -2]])
    moves = (points @ true[:, :2].T + true[:, 2] - points).astype(np.float32)
    moves[:12] += rng.uniform(20, 40, (12, 2)).astype(np.float32)
    np.testing.assert_allclose(similarity(points, moves), true, atol=0.02)


def test_ridge_separates_its_prompt_and_still_does_after_many_contrary_updates() -> None:
    rng = np.random.default_rng(4)
    features = Fourier(0)
    red, green = rng.normal(1, 0.2, (300, 8)).astype(np.float16), rng.normal(-1, 0.2, (900, 8)).astype(np.float16)
    inputs = features(np.concatenate([red, green]))
    inside = np.r_[np.ones(300), np.zeros(900)].astype(np.float32)

    def accuracy(model: Ridge, label: NDArray[np.float32]) -> tuple[float, float]:
        """Of the pixels inside and outside."""
        correct = (model.score(inputs) > 0) == (label > 0)
        return correct[:300].mean(), correct[300:].mean()

    model = Ridge(inputs, inside)
    assert min(accuracy(model, inside)) > 0.99
    # A classifier without memory learns the contrary label; the prompt's half of the moments keeps this one undecided.
    assert min(accuracy(Ridge(inputs, 1 - inside), 1 - inside)) > 0.99
    for _ in range(3):
        model.update(inputs, 1 - inside)
    assert min(accuracy(model, inside)) > 0.99
    scores = model.score(inputs)
    for _ in range(60):
        model.update(inputs, 1 - inside)
    assert (model.score(inputs)[:300] < scores[:300]).all() and (model.score(inputs)[300:] > scores[300:]).all()
    assert np.abs(model.score(inputs)).max() < 0.3 and accuracy(model, 1 - inside) != (1, 1)


def test_a_copy_of_a_classifier_is_independent() -> None:
    rng = np.random.default_rng(4)
    inputs = Fourier(0)(rng.normal(0, 1, (200, 8)).astype(np.float16))
    model = Ridge(inputs, (inputs[:, 0] > 0).astype(np.float32))
    scores = model.score(inputs)
    copy = model.copy()
    copy.update(inputs, (inputs[:, 1] > 0).astype(np.float32))
    assert np.array_equal(model.score(inputs), scores) and not np.allclose(copy.score(inputs), scores, atol=1e-3)


def test_a_real_video(real_data: Path) -> None:
    root = real_data / "mevis-davis" / "valid_u"
    meta = json.loads((root / "meta_expressions.json").read_text())["videos"]["car-shadow"]
    names = meta["frames"][:10]
    frames = [cv2.imread(str(root / "JPEGImages" / "car-shadow" / f"{n}.jpg"))[..., ::-1].copy() for n in names]
    anno = str(next(iter(meta["expressions"].values()))["anno_id"][0])
    rle = json.loads((root / "mask_dict.json").read_text())[anno][:10]
    size = frames[0].shape[:2]
    truth = GroundTruth((anno,), RleMasks.from_bytes([[from_coco(r, size, "test") for r in rle]], 10, size), np.ones(10, bool))
    video = Video("car-shadow", tuple(names), size, frames.__getitem__)
    tracks = track(video, key_frames=1)
    assert 1 <= tracks.masks.shape[0] <= 16
    assert best(tracks, truth)[0].mean() > 0.6
