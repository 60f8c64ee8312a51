"""The backend that drives Meta's package, with a stand-in of that package: its calls and its state, over the library's model."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_sam2
import torch
from PIL import Image
from plain_sam2 import pixel_values
from torch.nn.functional import interpolate

from rvos_cache.contracts.scene import make_scene as scene
from rvos_cache.errors import InputError
from rvos_cache.settings import build
from rvos_cache.trackers import tracker_class
from rvos_cache.trackers.sam2 import generate
from rvos_cache.trackers.sam2.features import Features
from rvos_cache.trackers.sam2.network import Network
from rvos_cache.trackers.sam2.settings import GridSettings
from rvos_cache.types import Expression, TrackSet

SAID = [Expression("v", str(i), text, ()) for i, text in enumerate(("the red square", "a dog moving left"))]


class VideoPredictor(torch.nn.Module):
    """What is public of SAM2VideoPredictor, and the part of its state in which tokens are found."""

    image_size, hidden_dim = tiny_sam2.SIDE, tiny_sam2.WIDTH

    def __init__(self, folder: str) -> None:
        from transformers import Sam2VideoModel

        super().__init__()
        self.model = Sam2VideoModel.from_pretrained(folder).eval()

    @classmethod
    def from_pretrained(cls, model_id: str, device: str) -> VideoPredictor:
        if not Path(model_id).is_dir():
            raise KeyError(model_id)
        assert device == "cpu"
        return cls(model_id)

    def init_state(self, video_path: str, offload_video_to_cpu: bool, offload_state_to_cpu: bool) -> dict[str, Any]:
        from transformers import Sam2VideoInferenceSession

        paths = sorted((p for p in Path(video_path).iterdir() if p.suffix == ".jpg"), key=lambda p: int(p.stem))
        frames = [np.asarray(Image.open(p).convert("RGB")) for p in paths]
        video = torch.stack([pixel_values(frame, self.image_size) for frame in frames])
        session = Sam2VideoInferenceSession(video=video, dtype=torch.float32)
        return {"session": session, "size": frames[0].shape[:2], "output_dict_per_obj": {}, "frames": len(frames)}

    def reset_state(self, inference_state: dict[str, Any]) -> None:
        inference_state["session"].reset_tracking_data()
        inference_state["output_dict_per_obj"].clear()

    def add_new_mask(self, inference_state: dict[str, Any], frame_idx: int, obj_id: int, mask: torch.Tensor) -> None:
        assert mask.ndim == 2 and mask.dtype == torch.bool
        session = inference_state["session"]
        assert not any(session.frames_tracked_per_obj.values()), "no new object once tracking has started"
        session.add_mask_inputs(session.obj_id_to_idx(obj_id), frame_idx, mask[None, None].float())
        session.obj_with_new_inputs = [*session.obj_with_new_inputs, obj_id]
        inference_state["prompted"] = frame_idx

    def propagate_in_video(self, inference_state: dict[str, Any], start_frame_idx: int, reverse: bool = False) -> Any:
        session = inference_state["session"]
        if session.obj_with_new_inputs:
            self.model(session, frame_idx=inference_state["prompted"])
        for answer in self.model.propagate_in_video_iterator(session, start_frame_idx=start_frame_idx, reverse=reverse):
            for i, held in session.output_dict_per_obj.items():
                inference_state["output_dict_per_obj"][i] = {
                    kind: {
                        t: {"obj_ptr": one["object_pointer"][0], "object_score_logits": one["object_score_logits"][0]}
                        for t, one in outputs.items()
                    }
                    for kind, outputs in held.items()
                }
            drawn = interpolate(answer.pred_masks, inference_state["size"], mode="bilinear", align_corners=False)
            yield answer.frame_idx, list(session.obj_ids), drawn


class ImagePredictor:
    """What is public of SAM2ImagePredictor."""

    def __init__(self, sam_model: VideoPredictor) -> None:
        self.network = Network(sam_model.model)

    def set_image(self, image: np.ndarray) -> None:
        *fine, top = self.network.encode(pixel_values(image, tiny_sam2.SIDE)[None])
        self.features, self.size = Features(tuple(fine), top), image.shape[:2]

    def predict(self, box: np.ndarray, multimask_output: bool, return_logits: bool) -> tuple[np.ndarray, None, None]:
        assert box.shape == (4,) and not multimask_output and return_logits
        placed = generate.scaled(box[None], self.size, tiny_sam2.SIDE)
        logits, _ = generate._asked(self.network, self.features, several=False, boxes=placed)
        return interpolate(logits, self.size, mode="bilinear")[0].numpy(), None, None


class MaskGenerator:
    """What is public of SAM2AutomaticMaskGenerator."""

    def __init__(
        self, model: VideoPredictor, points_per_side: int, points_per_batch: int, pred_iou_thresh: float,
        stability_score_thresh: float, stability_score_offset: float, box_nms_thresh: float,
    ) -> None:  # fmt: skip
        self.images = ImagePredictor(model)
        self.settings = GridSettings(
            points_per_side=points_per_side, points_per_batch=points_per_batch, predicted_iou=pred_iou_thresh,
            stability=stability_score_thresh, stability_offset=stability_score_offset, nms_iou=box_nms_thresh,
        )  # fmt: skip

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        self.images.set_image(image)
        masks = generate.grid_masks(self.images.network, self.images.features, image.shape[:2], self.settings)
        return [{"segmentation": mask} for mask in masks.dense()[:, 0]]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta's package, as far as it is used."""
    for module, name, kind in (
        ("sam2_video_predictor", "SAM2VideoPredictor", VideoPredictor),
        ("sam2_image_predictor", "SAM2ImagePredictor", ImagePredictor),
        ("automatic_mask_generator", "SAM2AutomaticMaskGenerator", MaskGenerator),
    ):
        made = ModuleType(f"sam2.{module}")
        setattr(made, name, kind)
        monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setitem(sys.modules, "sam2", ModuleType("sam2"))


def tracks(name: str, backend: str, frames: int = 5, **more: Any) -> TrackSet:
    given: dict[str, Any] = {"checkpoint": tiny_sam2.shared_checkpoint(), "backend": backend}
    if name == "sam2-grid":
        given |= {**tiny_sam2.GRID, "max_tracks": 3}
    if name == "sam2-box":
        given |= {"grounding_checkpoint": tiny_sam2.shared_grounding(), **tiny_sam2.BOX}
    kind = tracker_class(name)
    video, truth = scene(frames, True)
    return kind(build(kind.Settings, {**given, **more}, name)).track(video, SAID, *([truth] if kind.wants_ground_truth else []))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["sam2-grid", "sam2-box", "sam2-gt"])
def test_both_backends_give_the_same_tracks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "bfloat16", torch.float32)
    ours, theirs = tracks(name, "transformers"), tracks(name, "official")
    assert len(ours.origin) > 0 and ours.masks == theirs.masks and ours.origin == theirs.origin
    np.testing.assert_allclose(ours.tokens, theirs.tokens, atol=2e-3)
    np.testing.assert_allclose(ours.presence, theirs.presence, atol=1e-3)
    for field in ("prompt", "prompt_frame", "prompt_box"):
        assert np.array_equal(getattr(ours, field), getattr(theirs, field)), field


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("name", "strict"), [("sam2-grid", "predicted_iou"), ("sam2-box", "stability")])
def test_one_frame_is_enough_and_nothing_that_passes_the_thresholds_gives_no_track(name: str, strict: str) -> None:
    assert tracks(name, "official", 1).origin
    assert tracks(name, "official", 1, **{strict: 1}).origin == ()


def test_without_the_package_the_error_is_one_line_that_says_where_it_is() -> None:
    assert "sam2" not in sys.modules
    with pytest.raises(InputError, match="github.com/facebookresearch/sam2") as caught:
        tracks("sam2-gt", "official")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("installed")
def test_a_checkpoint_that_the_package_does_not_know_is_one_line() -> None:
    with pytest.raises(InputError, match="'facebook/none'.*Meta's package") as caught:
        tracks("sam2-gt", "official", checkpoint="facebook/none")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("installed")
def test_an_older_package_has_no_object_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = VideoPredictor.propagate_in_video

    def older(self: VideoPredictor, state: dict[str, Any], **given: Any) -> Any:
        for answer in newer(self, state, **given):
            for held in state["output_dict_per_obj"].values():
                for outputs in held.values():
                    for one in outputs.values():
                        one.pop("object_score_logits", None)
            yield answer

    monkeypatch.setattr(VideoPredictor, "propagate_in_video", older)
    with pytest.raises(InputError, match=r"older than 1\.1"):
        tracks("sam2-gt", "official")
