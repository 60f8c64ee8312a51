"""The three SAM 2 trackers: their prompts and candidates, what they leave out, and what binds their caches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sam2
from odd_videos import write_split
from PIL import Image

from rvos_cache.contracts.scene import make_scene as scene
from rvos_cache.errors import InputError
from rvos_cache.extraction import TrackWork, extract, extract_all, extract_video, plan_work
from rvos_cache.masks import RleMasks
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, Card, TrackCache, content_digest, open_cache, write_tracks
from rvos_cache.trackers import tracker_class
from rvos_cache.trackers.sam2.settings import BoxSettings, PromptedSettings
from rvos_cache.trackers.sam2.tracker import prompt_frames
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend, TransformersSession
from rvos_cache.types import Expression, GroundTruth, TrackSet

EXPRESSIONS = [Expression("v", str(i), text, ()) for i, text in enumerate(("the red square", "a dog moving left", "a bird"))]


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """Tracks of two runs are compared to the last bit."""
    with tiny_sam2.without_gpu():
        yield


def make_tracker(name: str, **settings: Any) -> Any:
    values: dict[str, Any] = {"checkpoint": tiny_sam2.shared_checkpoint()}
    if name == "sam2-grid":
        values |= tiny_sam2.GRID
    if name == "sam2-box":
        values |= {"grounding_checkpoint": tiny_sam2.shared_grounding(), **tiny_sam2.BOX}
    cls = tracker_class(name)
    return cls(build(cls.Settings, {**values, **settings}, name))


@pytest.fixture
def encodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a frame was encoded")

    monkeypatch.setattr(TransformersSession, "_encode", refuse)
    monkeypatch.setattr(TransformersSession, "_prompt_features", refuse)


@pytest.mark.parametrize(
    ("frames", "every", "expected"),
    [(1, 4, [0]), (9, 4, [0, 4, 8]), (1, "half", [0]), (2, "half", [0, 1]), (4, "half", [0, 2]), (5, "half", [0, 2, 4])],
)
def test_prompt_frames(frames: int, every: int | str, expected: list[int]) -> None:
    assert list(prompt_frames(frames, PromptedSettings.model_validate({"prompt_every": every}))) == expected


def are_rows(a: TrackSet, b: TrackSet, rows: np.ndarray) -> bool:
    """Whether the tracks of `a` are the tracks `rows` of `b`, whatever expression prompted them."""
    return (
        np.array_equal(a.tokens, b.tokens[rows])
        and np.array_equal(a.presence, b.presence[rows])
        and a.masks == b.masks.select(rows)
        and np.array_equal(a.prompt_box, b.prompt_box[rows])
        and np.array_equal(a.prompt_frame, b.prompt_frame[rows])
    )


@pytest.mark.slow
@pytest.mark.parametrize("rounds", ["sola", "ours"])
def test_boxes_of_one_expression_never_reach_another(rounds: str) -> None:
    video, _ = scene(5, True)
    tracker = make_tracker("sam2-box", rounds=rounds)
    together = tracker.track(video, EXPRESSIONS)
    assert set(together.prompt) == {0, 1, 2} and set(together.origin) == {"box"}
    alone = [tracker.track(video, [expression]) for expression in EXPRESSIONS]
    for e, tracks in enumerate(alone):
        assert (tracks.prompt == 0).all() and are_rows(tracks, together, np.flatnonzero(together.prompt == e))
    assert not np.array_equal(alone[0].prompt_box, alone[1].prompt_box)
    assert (np.bincount(together.prompt) <= tiny_sam2.BOX["tracks_per_expression"]).all()


def test_the_prompt_of_a_box_track_is_the_sentence_that_its_box_was_found_for(tmp_path: Path) -> None:
    """Through extraction and the store: the expression that `prompt` points at has the track's box among its own."""
    video, truth = scene(7, True)
    texts = ("a bird", "a dog moving left", "", "the red square")
    expressions = [Expression("v", f"e{i}", text, ()) for i, text in enumerate(texts) if text]
    tracker = make_tracker("sam2-box", tracks_per_expression=3)
    card = Card(kind="tracks", dataset="d", split="s", producer="sam2-box", channels=tracker.channels)
    write_tracks(CacheWriter(tmp_path / "c.zarr", card), extract_video(tracker, video, expressions, truth))
    info = TrackCache(tmp_path / "c.zarr").info("v")
    assert [e.expression_id for e in info.expressions] == ["e0", "e1", "e3"]
    height, width = video.size
    unambiguous = set()
    for prompt, frame, box in zip(info.prompt.tolist(), info.prompt_frame.tolist(), info.prompt_box):
        frames = [boxes for boxes, _ in tracker.finder.find(video.read(frame), [e.text for e in info.expressions])]
        shared = [np.isclose(np.clip(b, 0, (width, height) * 2), box, atol=1e-3).all(1).any() for b in frames]
        assert shared[prompt], f"the box {box} is none of {info.expressions[prompt].text!r} in frame {frame}"
        if sum(shared) == 1:
            unambiguous.add(prompt)
    assert unambiguous == {0, 1, 2}


def test_a_sentence_without_boxes_has_no_candidates_and_no_sentence_no_track(encodes_nothing: None) -> None:
    video, _ = scene(3, True)
    nothing = make_tracker("sam2-box", box_threshold=1).track(video, EXPRESSIONS)
    assert nothing.tokens.shape == (0, 3, tiny_sam2.WIDTH) and nothing.masks.shape == (0, 3)
    assert make_tracker("sam2-box").track(video, []).origin == ()


class Boxes:
    """A GroundingDINO that always returns these boxes, best first."""

    def __init__(self, *boxes: tuple[float, float, float, float]) -> None:
        self.boxes = np.array(boxes, np.float32)

    def find(self, frame: np.ndarray, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(self.boxes, np.ones(len(self.boxes), np.float32)) for _ in texts]


def test_boxes_beyond_the_frame_are_prompts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """SOLA's released code hands GroundingDINO's boxes to SAM 2 as they are."""
    prompted: list[list[float]] = []
    box_masks = TransformersSession.box_masks

    def recorded(self: Any, t: int, boxes: np.ndarray, settings: BoxSettings) -> Any:
        prompted.extend(boxes.tolist())
        return box_masks(self, t, boxes, settings)

    monkeypatch.setattr(TransformersSession, "box_masks", recorded)
    video, _ = scene(2, True)
    height, width = video.size
    tracker = make_tracker("sam2-box")
    tracker.finder = Boxes((-9, -5, 30, 20), (width + 5, 3, width + 20, 30))
    tracks = tracker.track(video, EXPRESSIONS[:1])
    assert prompted == tracker.finder.boxes.tolist()
    assert (tracks.prompt_box >= 0).all() and (tracks.prompt_box <= [width, height, width, height]).all()


@pytest.mark.parametrize(("rounds", "expected"), [("sola", [0, 1, 3]), ("ours", [1, 3])])
def test_which_stabilities_pass(monkeypatch: pytest.MonkeyPatch, rounds: str, expected: list[int]) -> None:
    """NaN, of a mask without pixels, is below no threshold in the released code; then its object is tracked as hidden."""
    video, _ = scene(2, True)
    pixels = np.zeros((4, 1, *video.size), bool)
    for k in range(1, 4):
        pixels[k, 0, :20, 10 * k - 10 : 10 * k] = True
    masks = RleMasks.from_dense(pixels)
    stability = np.array([np.nan, 0.85, 0.849, 1], np.float32)
    monkeypatch.setattr(TransformersSession, "box_masks", lambda *_: (masks, stability))
    tracker = make_tracker("sam2-box", rounds=rounds, stability=0.85, prompt_every=9, tracks_per_expression=9)
    tracker.finder = Boxes(*((k, 0.0, k + 1.0, 5.0) for k in range(4)))
    tracks = tracker.track(video, EXPRESSIONS[:1])
    assert sorted(tracks.prompt_box[:, 0]) == expected
    if rounds == "sola":
        assert tracks.masks.area()[-1, 0] == 0 and tracks.presence[-1, 0] == 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sam2-box", {"stability": 1}),
        ("sam2-grid", {"predicted_iou": 1}),
        ("sam2-grid", {"stability": 1, "stability_offset": 50}),
    ],
)
def test_a_video_whose_prompts_are_all_filtered_has_no_tracks(name: str, settings: dict[str, Any]) -> None:
    video, truth = scene(3, True)
    record = extract_video(make_tracker(name, **settings), video, EXPRESSIONS, truth)
    assert record.tracks.tokens.shape == (0, 3, tiny_sam2.WIDTH) and record.overlap is not None
    assert record.overlap.inter.shape == (0, 1, 3)


def test_an_object_that_is_never_visible_is_never_prompted(encodes_nothing: None) -> None:
    video, _ = scene(3, True)
    hidden = GroundTruth(("7",), RleMasks.empty(1, 3, video.size), np.ones(3, bool))
    assert make_tracker("sam2-gt").track(video, EXPRESSIONS, hidden).origin == ()


def test_objects_are_prompted_with_their_masks() -> None:
    video, truth = scene(6, True)
    tracks = make_tracker("sam2-gt").track(video, EXPRESSIONS, truth)
    assert tracks.origin[0] == "gt" and (tracks.prompt == -1).all()
    t = int(tracks.prompt_frame[0])
    mask, expected = tracks.masks.decode(0, t), truth.masks.decode(0, t)
    assert (mask & expected).sum() > 0.8 * (mask | expected).sum()
    assert tracks.presence[0, t] == np.float16(1 / (1 + np.exp(-10)))
    y, x = np.nonzero(expected)
    assert tracks.prompt_box[0].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_only_sam2_gt_needs_ground_truth() -> None:
    video, truth = scene(2, True)
    with pytest.raises(InputError, match="hides"):
        extract_video(make_tracker("sam2-gt"), video, EXPRESSIONS, None)
    without, with_truth = (extract_video(make_tracker("sam2-grid"), video, EXPRESSIONS, given).tracks for given in (None, truth))
    assert are_rows(without, with_truth, np.arange(len(without.origin)))


def test_a_split_that_hides_the_ground_truth_fails_before_weights_are_loaded(tmp_path: Path) -> None:
    """Once, and not for each of thousands of videos; where the tracker is only a default, the split gets its words alone."""
    root, out = tmp_path / "data", tmp_path / "out"
    (root / "videos/v").mkdir(parents=True)
    Image.new("RGB", (32, 24)).save(root / "videos/v/00000.jpg")
    (root / "expressions.json").write_text(json.dumps({"v": ["a dog"]}))
    message = r"data, split all: tracker sam2-gt prompts with ground truth, which this split hides; give"
    with pytest.raises(InputError, match=message):
        extract("plain", root, "all", "sam2-gt", out / "a.zarr", overrides={"checkpoint": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match=message):
        plan_work(TrackWork("plain", root, "all", "sam2-gt", {"checkpoint": str(tmp_path / "nowhere")}), 1)
    with pytest.raises(InputError, match=message):
        extract_all("plain", root, splits=["all"], tracker="sam2-gt", out=out)
    with pytest.warns(UserWarning, match="split all hides the ground truth that sam2-gt prompts with: its words alone"):
        assert set(extract_all("plain", root, tracker="sam2-gt", encoder="hashed", out=out)) == {"all/text"}
    assert not (out / "a.zarr").exists() and [p.name for p in (out / "all").iterdir()] == ["text-hashed.zarr"]


def test_long_videos_have_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    propagate = TransformersSession.propagate

    def counted(self: TransformersSession, t: int, prompts: Any) -> Any:
        sizes.append(len(prompts))
        return propagate(self, t, prompts)

    monkeypatch.setattr(TransformersSession, "propagate", counted)
    video, truth = scene(5, True)
    four = GroundTruth(tuple("0123"), truth.masks.select([0] * 4), truth.annotated)
    for frames, expected in ((5, [3, 1]), (4, [2, 2])):
        sizes.clear()
        make_tracker("sam2-gt", long_frames=frames, batch=3, long_batch=2, again_iou=0).track(video, EXPRESSIONS, four)
        assert sizes == expected


def test_settings_that_do_not_change_tracks_are_not_stored() -> None:
    unstored = {"gpu_memory": "1GB", "host_memory": 0, "encoder_batch": 2, "compile": True, "points_per_batch": 3}
    grid = tracker_class("sam2-grid").Settings
    assert build(grid, unstored, "").model_dump(mode="json") == grid().model_dump(mode="json")
    stored = {
        "same_iou": 0.6, "backend": "official", "batch": 2, "prompt_every": "half", "part": 0.5, "nms_iou": 0.6,
        "rounds": "ours", "prompt_features": "video", "iou_size": "540x960",
    }  # fmt: skip
    for name, value in stored.items():
        assert build(grid, {name: value}, "").model_dump(mode="json") != grid().model_dump(mode="json"), name


def test_a_cache_is_resumed_with_other_memory_and_refused_with_other_thresholds(tmp_path: Path) -> None:
    write_split(tmp_path / "valid_u", {name: (3, True, {"0": ("the red square", [0])}) for name in "ab"})
    settings = {"checkpoint": tiny_sam2.shared_checkpoint(), **tiny_sam2.GRID, "max_tracks": 2}

    def run(out: str, limit: int | None = None, **more: Any) -> Any:
        return extract("mevis", tmp_path, "valid_u", "sam2-grid", tmp_path / out, limit=limit, overrides={**settings, **more})

    whole = run("whole.zarr", host_memory=0)
    assert not whole.failed and whole.done
    assert run("parts.zarr", limit=1).done == whole.done[:1]
    assert run("parts.zarr", host_memory="1MB").skipped == whole.done[:1]
    assert content_digest(tmp_path / "parts.zarr") == content_digest(tmp_path / "whole.zarr")
    assert open_cache(tmp_path / "whole.zarr").card.settings["same_iou"] == 0.7
    with pytest.raises(InputError, match=r"settings\.same_iou"):
        run("parts.zarr", same_iou=0.5)


def test_two_checkpoints_with_the_same_name_keep_their_digests(tmp_path: Path) -> None:
    sam2, grounding = tmp_path / "a" / "model", tmp_path / "b" / "model"
    for folder in (sam2, grounding):
        folder.parent.mkdir()
    sam2.symlink_to(tiny_sam2.shared_checkpoint())
    grounding.symlink_to(tiny_sam2.shared_grounding())
    hashes = make_tracker("sam2-box", checkpoint=str(sam2), grounding_checkpoint=str(grounding)).weight_hashes()
    assert len(hashes) == 2


def test_opening_a_session_encodes_no_frame() -> None:
    backend = TransformersBackend(build(PromptedSettings, {"checkpoint": tiny_sam2.shared_checkpoint()}, ""))
    video, _ = scene(2, True)
    with backend.open(video) as session:
        assert not session._encoded
