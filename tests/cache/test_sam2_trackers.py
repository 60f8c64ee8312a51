"""The three SAM 2 trackers: what they ask, what they leave out, whose candidates their tracks are, what binds their caches."""

from __future__ import annotations

import json
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
from rvos_cache.trackers.sam2.settings import PromptedSettings
from rvos_cache.trackers.sam2.tracker import prompt_frames
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend, TransformersSession
from rvos_cache.types import Expression, GroundTruth, TrackSet

SAID = [Expression("v", str(i), text, ()) for i, text in enumerate(("the red square", "a dog moving left", "a bird"))]


def tracker(name: str, **settings: Any) -> Any:
    given: dict[str, Any] = {"checkpoint": tiny_sam2.shared_checkpoint()}
    if name == "sam2-grid":
        given |= tiny_sam2.GRID
    if name == "sam2-box":
        given |= {"grounding_checkpoint": tiny_sam2.shared_grounding(), **tiny_sam2.BOX}
    kind = tracker_class(name)
    return kind(build(kind.Settings, {**given, **settings}, name))


@pytest.fixture
def encodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a frame was encoded")

    monkeypatch.setattr(TransformersSession, "_encode", refuse)


@pytest.mark.parametrize(
    ("frames", "every", "wanted"),
    [(1, 4, [0]), (9, 4, [0, 4, 8]), (1, "half", [0]), (2, "half", [0, 1]), (4, "half", [0, 2]), (5, "half", [0, 2, 4])],
)
def test_prompt_frames(frames: int, every: int | str, wanted: list[int]) -> None:
    assert list(prompt_frames(frames, PromptedSettings.model_validate({"prompt_every": every}))) == wanted


def same(a: TrackSet, b: TrackSet, rows: np.ndarray) -> bool:
    """Whether the tracks of `a` are the tracks `rows` of `b`, but for the expression that asked."""
    return (
        np.array_equal(a.tokens, b.tokens[rows])
        and np.array_equal(a.presence, b.presence[rows])
        and a.masks == b.masks.select(rows)
        and np.array_equal(a.prompt_box, b.prompt_box[rows])
        and np.array_equal(a.prompt_frame, b.prompt_frame[rows])
    )


def test_boxes_of_one_expression_never_reach_another() -> None:
    video, _ = scene(5, True)
    made = tracker("sam2-box")
    together = made.track(video, SAID)
    assert set(together.prompt) == {0, 1, 2} and set(together.origin) == {"box"}
    alone = [made.track(video, [expression]) for expression in SAID]
    for e, tracks in enumerate(alone):
        assert (tracks.prompt == 0).all() and same(tracks, together, np.flatnonzero(together.prompt == e))
    assert not np.array_equal(alone[0].prompt_box, alone[1].prompt_box)
    assert (np.bincount(together.prompt) <= tiny_sam2.BOX["tracks_per_expression"]).all()


def test_the_prompt_of_a_box_track_is_the_sentence_that_its_box_was_found_for(tmp_path: Path) -> None:
    """Through extraction and the store: the expression that `prompt` points at has the track's box among its own."""
    video, truth = scene(7, True)
    texts = ("a bird", "a dog moving left", "", "the red square")
    expressions = [Expression("v", f"e{i}", text, ()) for i, text in enumerate(texts) if text]
    made = tracker("sam2-box", tracks_per_expression=3)
    card = Card(kind="tracks", dataset="d", split="s", producer="sam2-box", channels=made.channels)
    write_tracks(CacheWriter(tmp_path / "c.zarr", card), extract_video(made, video, expressions, truth))
    info = TrackCache(tmp_path / "c.zarr").info("v")
    assert [e.expression_id for e in info.expressions] == ["e0", "e1", "e3"]
    height, width = video.size
    unambiguous = set()
    for prompt, frame, box in zip(info.prompt.tolist(), info.prompt_frame.tolist(), info.prompt_box):
        frames = [boxes for boxes, _ in made.finder.find(video.read(frame), [e.text for e in info.expressions])]
        shared = [np.isclose(np.clip(b, 0, (width, height) * 2), box, atol=1e-3).all(1).any() for b in frames]
        assert shared[prompt], f"the box {box} is none of {info.expressions[prompt].text!r} in frame {frame}"
        if sum(shared) == 1:
            unambiguous.add(prompt)
    assert unambiguous == {0, 1, 2}


def test_a_sentence_without_boxes_has_no_candidates_and_no_sentence_no_track(encodes_nothing: None) -> None:
    video, _ = scene(3, True)
    nothing = tracker("sam2-box", box_threshold=1).track(video, SAID)
    assert nothing.tokens.shape == (0, 3, tiny_sam2.WIDTH) and nothing.masks.shape == (0, 3)
    assert tracker("sam2-box").track(video, []).origin == ()


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
    record = extract_video(tracker(name, **settings), video, SAID, truth)
    assert record.tracks.tokens.shape == (0, 3, tiny_sam2.WIDTH) and record.overlap is not None
    assert record.overlap.inter.shape == (0, 1, 3)


def test_an_object_that_is_never_seen_is_never_prompted(encodes_nothing: None) -> None:
    video, _ = scene(3, True)
    hidden = GroundTruth(("7",), RleMasks.empty(1, 3, video.size), np.ones(3, bool))
    assert tracker("sam2-gt").track(video, SAID, hidden).origin == ()


def test_objects_are_prompted_with_their_masks() -> None:
    video, truth = scene(6, True)
    found = tracker("sam2-gt").track(video, SAID, truth)
    assert found.origin[0] == "gt" and (found.prompt == -1).all()
    t = int(found.prompt_frame[0])
    drawn, wanted = found.masks.decode(0, t), truth.masks.decode(0, t)
    assert (drawn & wanted).sum() > 0.8 * (drawn | wanted).sum()
    assert found.presence[0, t] == np.float16(1 / (1 + np.exp(-10)))
    y, x = np.nonzero(wanted)
    assert found.prompt_box[0].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_ground_truth_is_wanted_by_the_one_tracker_that_says_so() -> None:
    video, truth = scene(2, True)
    with pytest.raises(InputError, match="hides it"):
        extract_video(tracker("sam2-gt"), video, SAID, None)
    blind, seeing = (extract_video(tracker("sam2-grid"), video, SAID, given).tracks for given in (None, truth))
    assert same(blind, seeing, np.arange(len(blind.origin)))


def test_a_split_that_hides_what_the_tracker_prompts_with_is_no_work(tmp_path: Path) -> None:
    """Said once and before weights are loaded, not by each of thousands of videos; unasked for, it gets its words alone."""
    root, out = tmp_path / "data", tmp_path / "out"
    (root / "videos/v").mkdir(parents=True)
    Image.new("RGB", (32, 24)).save(root / "videos/v/00000.jpg")
    (root / "expressions.json").write_text(json.dumps({"v": ["a dog"]}))
    said = r"data, split all: tracker sam2-gt prompts with ground truth, which this split hides; give"
    with pytest.raises(InputError, match=said):
        extract("plain", root, "all", "sam2-gt", out / "a.zarr", overrides={"checkpoint": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match=said):
        plan_work(TrackWork("plain", root, "all", "sam2-gt", {"checkpoint": str(tmp_path / "nowhere")}), 1)
    with pytest.raises(InputError, match=said):
        extract_all("plain", root, splits=["all"], tracker="sam2-gt", out=out)
    with pytest.warns(UserWarning, match="split all hides the ground truth that sam2-gt prompts with: its words alone"):
        assert set(extract_all("plain", root, tracker="sam2-gt", out=out)) == {"all/text"}
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
    for frames, wanted in ((5, [3, 1]), (4, [2, 2])):
        sizes.clear()
        tracker("sam2-gt", long_frames=frames, batch=3, long_batch=2, again_iou=0).track(video, SAID, four)
        assert sizes == wanted


def test_what_changes_no_track_binds_no_cache() -> None:
    free = {"gpu_memory": "1GB", "host_memory": 0, "encoder_batch": 2, "compile": True, "points_per_batch": 3}
    plain = tracker_class("sam2-grid").Settings
    assert build(plain, free, "").model_dump(mode="json") == plain().model_dump(mode="json")
    bound = {"same_iou": 0.6, "backend": "official", "batch": 2, "prompt_every": "half", "part": 0.5, "nms_iou": 0.6}
    for name, value in bound.items():
        assert build(plain, {name: value}, "").model_dump(mode="json") != plain().model_dump(mode="json"), name


def test_a_cache_is_made_resumed_with_other_memory_and_refused_with_other_thresholds(tmp_path: Path) -> None:
    write_split(tmp_path / "valid_u", {name: (3, True, {"0": ("the red square", [0])}) for name in "ab"})
    settings = {"checkpoint": tiny_sam2.shared_checkpoint(), **tiny_sam2.GRID, "max_tracks": 2}

    def made(out: str, limit: int | None = None, **more: Any) -> Any:
        return extract("mevis", tmp_path, "valid_u", "sam2-grid", tmp_path / out, limit=limit, overrides={**settings, **more})

    whole = made("whole.zarr", host_memory=0)
    assert not whole.failed and whole.done
    assert made("parts.zarr", limit=1).done == whole.done[:1]
    assert made("parts.zarr", host_memory="1MB").skipped == whole.done[:1]
    assert content_digest(tmp_path / "parts.zarr") == content_digest(tmp_path / "whole.zarr")
    assert open_cache(tmp_path / "whole.zarr").card.settings["same_iou"] == 0.7
    with pytest.raises(InputError, match=r"settings\.same_iou"):
        made("parts.zarr", same_iou=0.5)


def test_two_checkpoints_of_one_name_keep_their_digests(tmp_path: Path) -> None:
    sam2, grounding = tmp_path / "a" / "model", tmp_path / "b" / "model"
    for folder in (sam2, grounding):
        folder.parent.mkdir()
    sam2.symlink_to(tiny_sam2.shared_checkpoint())
    grounding.symlink_to(tiny_sam2.shared_grounding())
    assert len(tracker("sam2-box", checkpoint=str(sam2), grounding_checkpoint=str(grounding)).weight_hashes()) == 2


def test_the_default_backend_opens_lazily() -> None:
    """A session that is asked nothing reads no frame."""
    made = TransformersBackend(build(PromptedSettings, {"checkpoint": tiny_sam2.shared_checkpoint()}, ""))
    video, _ = scene(2, True)
    with made.open(video) as session:
        assert not session._encoded
