"""How the official backend calls Meta's package: with stand-ins of its modules that record the calls and return marked arrays.

What the package computes is tested with recorded values, in test_sam2_golden.py, with the package itself where it is installed.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_sam2
import torch
from golden_sam2 import golden_checkpoint, golden_model, meta_tensors
from PIL import Image

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.trackers.sam2.backend import make_prompts
from rvos_cache.trackers.sam2.names import to_transformers
from rvos_cache.trackers.sam2.official import OfficialBackend
from rvos_cache.trackers.sam2.settings import BoxSettings, GridSettings, Sam2Settings
from rvos_cache.types import Video

SIZE, SIDE, CHANNELS, FRAMES = (40, 60), 128, 8, 5


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with tiny_sam2.without_gpu():
        yield


class Predictor(torch.nn.Module):
    """The methods of SAM2VideoPredictor that are called. Pointers hold 10 * frame + object, and masks one column per frame."""

    image_size, hidden_dim = SIDE, CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.calls: list[Any] = []

    def init_state(self, video_path: str, offload_video_to_cpu: bool, offload_state_to_cpu: bool) -> dict[str, Any]:
        assert offload_video_to_cpu and offload_state_to_cpu
        paths = sorted((p for p in Path(video_path).iterdir() if p.suffix == ".jpg"), key=lambda p: int(p.stem))
        self.frames = [np.asarray(Image.open(p).convert("RGB")) for p in paths]
        return {"output_dict_per_obj": {}}

    def reset_state(self, inference_state: dict[str, Any]) -> None:
        self.calls.append("reset")
        inference_state["output_dict_per_obj"].clear()

    def add_new_mask(self, inference_state: dict[str, Any], frame_idx: int, obj_id: int, mask: torch.Tensor) -> None:
        assert mask.shape == (SIDE, SIDE) and mask.dtype == torch.bool
        self.calls.append((frame_idx, obj_id, int(mask.sum())))
        inference_state["output_dict_per_obj"][obj_id] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        self.prompt = frame_idx

    def propagate_in_video(self, inference_state: dict[str, Any], start_frame_idx: int, reverse: bool = False) -> Any:
        if sys.modules["sam2.sam2_video_predictor"].tqdm is noisy_tqdm:
            print("a progress bar", file=sys.stderr)
        warnings.warn("noise", stacklevel=1)
        logging.getLogger().error("noise")
        # As in the package, which does not go backward from the first frame.
        order = range(start_frame_idx, FRAMES) if not reverse else range(start_frame_idx, -1, -1) if start_frame_idx else ()
        objects = inference_state["output_dict_per_obj"]
        for t in order:
            for i, outputs in objects.items():
                kind = "cond_frame_outputs" if t == self.prompt else "non_cond_frame_outputs"
                outputs[kind][t] = {
                    "obj_ptr": torch.full((1, CHANNELS), 10.0 * t + i), "object_score_logits": torch.tensor([[float(t - i)]])
                }  # fmt: skip
            logits = torch.full((len(objects), 1, *SIZE), -1.0)
            logits[:, :, :, t] = 1
            yield t, list(objects), logits


class ImagePredictor:
    """The methods of SAM2ImagePredictor that are called: the box's pixels, and low-resolution logits of stability 1/2."""

    def __init__(self, sam_model: Predictor) -> None:
        self.model = sam_model

    def set_image(self, image: np.ndarray) -> None:
        self.model.calls.append(("image", image.shape))

    def predict(self, box: np.ndarray, multimask_output: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert box.shape == (4,) and not multimask_output
        self.model.calls.append(("box", torch.is_autocast_enabled("cpu"), box.tolist()))
        mask = np.zeros((1, *SIZE), np.float32)
        mask[0, : int(box[3]), : int(box[2])] = 1
        low = np.full((1, 32, 32), -2.0, np.float32)
        low[0, 0, :2] = 2, 0
        return mask, np.ones(1, np.float32), low


class MaskGenerator:
    """The methods of SAM2AutomaticMaskGenerator that are called."""

    def __init__(self, model: Predictor, **settings: Any) -> None:
        model.calls.append(settings)
        self.count = settings["points_per_side"]

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        return [{"segmentation": np.eye(*image.shape[:2], dtype=bool)}] * self.count


class Builder:
    """The functions of sam2.build_sam that are called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.model: torch.nn.Module = Predictor()

    def build_sam2_video_predictor(self, config: str, path: str | None, device: str, **more: Any) -> Any:
        self.calls.append((config, path, device, *more.items()))
        return self.model

    def build_sam2_video_predictor_hf(self, name: str, device: str) -> Any:
        self.calls.append((name, device))
        if name == "facebook/none":
            raise KeyError(name)
        return self.model


def noisy_tqdm(items: Any, **_: Any) -> Any:
    return items


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    """Meta's package, as far as it is imported."""
    builder = Builder()
    for name, values in {
        "sam2": {"__path__": []},
        "sam2.build_sam": {
            name: getattr(builder, name) for name in ("build_sam2_video_predictor", "build_sam2_video_predictor_hf")
        },
        "sam2.sam2_video_predictor": {"tqdm": noisy_tqdm},
        "sam2.sam2_image_predictor": {"SAM2ImagePredictor": ImagePredictor},
        "sam2.automatic_mask_generator": {"SAM2AutomaticMaskGenerator": MaskGenerator},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return builder


def make_backend(**settings: Any) -> OfficialBackend:
    return OfficialBackend(GridSettings(backend="official", checkpoint="facebook/sam2-hiera-large", **settings))


def video(frames: int = FRAMES) -> tuple[Video, np.ndarray]:
    pictures = np.random.default_rng(0).integers(0, 255, (frames, *SIZE, 3), np.uint8)
    return Video("v", tuple(map(str, range(frames))), SIZE, pictures.__getitem__), pictures


@pytest.mark.parametrize("t", [0, 2])
def test_prompts_are_tracked_in_both_directions(builder: Builder, t: int) -> None:
    masks = np.zeros((2, *SIZE), bool)
    masks[0, :20, :30], masks[1] = True, True
    source, pictures = video()
    with make_backend().open(source) as session:
        tracks = [session.propagate(t, make_prompts(RleMasks.from_dense(masks[:, None]), t)) for _ in range(2)][1]
    # Resizing may round a corner.
    quarter = pytest.approx(SIDE * SIDE // 4, abs=1)
    assert builder.model.calls == 2 * ["reset", (t, 0, quarter), (t, 1, SIDE * SIDE)]
    assert tracks.tokens[:, :, 0].tolist() == [[10 * s + i for s in range(FRAMES)] for i in range(2)]
    assert tracks.scores.tolist() == [[s - i for s in range(FRAMES)] for i in range(2)]
    assert (np.nonzero(tracks.masks.dense()[0])[2] == np.repeat(np.arange(FRAMES), SIZE[0])).all()
    # The package reads the frames' own pixels.
    assert np.array_equal(np.stack(builder.model.frames), pictures)


def test_grid_settings_reach_the_generator(builder: Builder) -> None:
    settings = GridSettings(points_per_side=3, predicted_iou=0.1, stability=0.2, stability_offset=0.3, nms_iou=0.4)
    with make_backend().open(video()[0]) as session:
        assert session.grid_masks(1, settings).shape == (3, 1)
        assert session.grid_masks(1, GridSettings(points_per_side=1)).dense().sum() == min(SIZE)
    assert builder.model.calls[0] == {
        "points_per_side": 3, "points_per_batch": 64, "pred_iou_thresh": 0.1, "stability_score_thresh": 0.2,
        "stability_score_offset": 0.3, "box_nms_thresh": 0.4,
    }  # fmt: skip


def test_boxes_are_asked_one_by_one_in_float32(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rvos_cache.trackers.sam2.official.native_dtype", lambda device: torch.bfloat16)
    boxes = np.array([[0, 0, 30, 20], [-5, 0, 70, 10]], np.float32)
    with make_backend().open(video()[0]) as session:
        masks, stability = session.box_masks(1, boxes, BoxSettings())
        assert session.box_masks(1, boxes[:0], BoxSettings())[0].shape == (0, 1)
    assert masks.area()[:, 0].tolist() == [600, 600] and stability.tolist() == [0.5, 0.5]
    assert builder.model.calls == [("image", (*SIZE, 3)), *(("box", False, b.tolist()) for b in boxes)]


def test_the_package_s_bars_warnings_and_messages_are_silenced(builder: Builder, capfd: pytest.CaptureFixture[str]) -> None:
    masks = RleMasks.from_dense(np.ones((1, 1, *SIZE), bool))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with make_backend().open(video()[0]) as session:
            session.propagate(1, make_prompts(masks, 1))
    assert capfd.readouterr() == ("", "")
    # Only while it runs.
    assert sys.modules["sam2.sam2_video_predictor"].tqdm is noisy_tqdm and logging.root.manager.disable == 0


@pytest.mark.parametrize(("version", "config"), [("sam2.0", "sam2/sam2"), ("sam2.1", "sam2.1/sam2.1")])
def test_a_file_and_a_folder_with_one_go_through_the_builder(builder: Builder, tmp_path: Path, version: str, config: str) -> None:
    path = tmp_path / "sam2_any_name.pt"
    torch.save({"model": meta_tensors(version)}, path)
    for checkpoint in (path, tmp_path):
        backend = OfficialBackend(Sam2Settings(backend="official", checkpoint=str(checkpoint)))
        assert builder.calls.pop() == (f"configs/{config}_hiera_t.yaml", str(path), "cpu") and not builder.calls
        assert list(backend.weight_hashes()) == [checkpoint.name]
    (tmp_path / "second.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 \.pt files; give one of them: sam2_any_name\.pt, second\.pt"):
        OfficialBackend(Sam2Settings(backend="official", checkpoint=str(tmp_path)))


@pytest.mark.parametrize("version", ["sam2.0", "sam2.1"])
def test_a_folder_of_transformers_is_loaded_into_the_builder_s_model(builder: Builder, version: str) -> None:
    expected = meta_tensors(version)

    class Loaded(Predictor):
        def state_dict(self, *args: Any, **more: Any) -> Any:
            return dict(expected)

        def load_state_dict(self, state: Any, *args: Any, **more: Any) -> Any:
            self.loaded = state

    builder.model = Loaded()
    OfficialBackend(Sam2Settings(backend="official", checkpoint=golden_checkpoint(version)))
    config, path, device, (_, overrides) = builder.calls[0]
    assert (path, device) == (None, "cpu") and config.endswith(f"{version.removesuffix('.0')}_hiera_t.yaml")
    # The golden checkpoint has an input of 128 pixels.
    assert overrides[0] == "++model.image_size=128" and all("feat_sizes=[8,8]" in item for item in overrides[1:])
    assert builder.model.loaded.keys() == expected.keys()
    model = golden_model(version).state_dict()
    for name, tensor in to_transformers(builder.model.loaded)[0].items():
        assert torch.equal(tensor, model[name]), name


def test_a_hub_name_goes_to_the_package(builder: Builder) -> None:
    make_backend()
    assert builder.calls == [("facebook/sam2-hiera-large", "cpu")]
    with pytest.raises(InputError, match="'facebook/none'.*Meta's package") as error:
        OfficialBackend(GridSettings(backend="official", checkpoint="facebook/none"))
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_is_one_line(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.pt").write_bytes(b"none")
    for name, message in (
        ("empty", "neither a .pt file nor config.json"),
        ("bad.pt", "not a checkpoint of tensors"),
        ("absent.pt", "no such file"),
    ):
        with pytest.raises(InputError, match=message) as error:
            OfficialBackend(Sam2Settings(backend="official", checkpoint=str(tmp_path / name)))
        assert "\n" not in str(error.value) and name in str(error.value)


def test_without_the_package_the_error_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sam2", None)
    with pytest.raises(InputError, match="github.com/facebookresearch/sam2") as error:
        make_backend()
    assert "\n" not in str(error.value)


def test_one_encoding_is_a_setting_of_the_other_backend(builder: Builder) -> None:
    with pytest.raises(InputError, match="prompt_features=video.*--set backend=transformers"):
        make_backend(prompt_features="video")


def test_an_older_package_has_no_object_scores(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = Predictor.propagate_in_video

    def older(self: Predictor, state: dict[str, Any], **inputs: Any) -> Any:
        for output in newer(self, state, **inputs):
            for outputs in state["output_dict_per_obj"].values():
                for kind in outputs.values():
                    for one in kind.values():
                        one.pop("object_score_logits", None)
            yield output

    monkeypatch.setattr(Predictor, "propagate_in_video", older)
    masks = RleMasks.from_dense(np.ones((1, 1, *SIZE), bool))
    with make_backend().open(video()[0]) as session, pytest.raises(InputError, match=r"older than 1\.1"):
        session.propagate(1, make_prompts(masks, 1))
