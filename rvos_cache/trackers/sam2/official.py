"""SAM 2 of Meta's own package `sam2`, if it is installed: the reference, with which SOLA's released scripts ran.

It keeps the features of one frame only, so it encodes a frame again for every batch and direction. Where its CUDA extension is
built it fills holes in masks (`fill_hole_area`, 8 pixels of its low-resolution masks), which the transformers backend does not.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.pretrained import resolve_checkpoint, weights_digest
from rvos_cache.system.device import device
from rvos_cache.trackers.sam2.backend import Prompt, Propagated
from rvos_cache.trackers.sam2.convert import read_tensors
from rvos_cache.trackers.sam2.generate import stability
from rvos_cache.trackers.sam2.names import model_size, to_meta
from rvos_cache.trackers.sam2.precision import inference_precision, native_dtype
from rvos_cache.trackers.sam2.preprocess import resize_mask_prompts
from rvos_cache.trackers.sam2.rounds import whole_masks
from rvos_cache.trackers.sam2.settings import BoxSettings, GridSettings, PromptedSettings, Sam2Settings
from rvos_cache.trackers.sam2.track_writer import TrackWriter
from rvos_cache.types import Video

GIVE = "give a hub name such as facebook/sam2-hiera-large, a .pt file, or a folder with one"


class OfficialBackend:
    """A SAM2VideoPredictor by hub name, `.pt` file or folder. Raises InputError if the package or checkpoint cannot be loaded."""

    def __init__(self, settings: Sam2Settings) -> None:
        if isinstance(settings, PromptedSettings) and settings.prompt_features == "video":
            raise InputError("prompt_features=video: Meta's package encodes prompt frames again; --set backend=transformers")
        try:
            with quiet():
                from sam2 import build_sam  # type: ignore[import-not-found]
                from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator  # type: ignore[import-not-found]
                from sam2.sam2_image_predictor import SAM2ImagePredictor  # type: ignore[import-not-found]
        except ImportError as error:
            raise InputError(
                f"backend=official needs Meta's package sam2, which cannot be imported ({error}); install it from "
                "https://github.com/facebookresearch/sam2 (PyPI's sam2 is a copy by someone else), or --set backend=transformers"
            ) from error
        self.generator, self.images, self.device = SAM2AutomaticMaskGenerator, SAM2ImagePredictor, device()
        try:
            with quiet():
                self.model: Any = build(build_sam, settings.checkpoint, str(self.device))
        except InputError as error:
            raise InputError(f"SAM 2 checkpoint {settings.checkpoint!r}: {error}") from error
        # Which exception the package raises for an unknown name, a missing file or no network differs.
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"SAM 2 checkpoint {settings.checkpoint!r} cannot be loaded by Meta's package ({line}); {GIVE}"
            ) from error
        self.digest = weights_digest(self.model, settings.checkpoint)
        self.channels = int(self.model.hidden_dim)

    def weight_hashes(self) -> dict[str, str]:
        """Digest of the weights as loaded."""
        return self.digest

    @contextmanager
    def running(self, dtype: Any = None) -> Iterator[None]:
        """No gradients, no output of the package, and computation in `dtype` (default: bfloat16 on a GPU, else float32)."""
        with quiet(), inference_precision(self.device, dtype or native_dtype(self.device)):
            yield

    @contextmanager
    def _session(self, video: Video) -> Iterator[OfficialSession]:
        with tempfile.TemporaryDirectory(prefix="rvos-frames-") as folder:
            yield OfficialSession(self, video, Path(folder))

    def open(self, video: Video) -> AbstractContextManager[OfficialSession]:
        """A session; frames are read when they are needed. Raises OSError if the disk has not enough space."""
        return self._session(video)


def build(build_sam: Any, checkpoint: str, target: str) -> Any:
    """Meta's video predictor for `checkpoint` (a hub name, a `.pt` file or a folder) on the device `target`.

    build_sam: the module `sam2.build_sam`. Raises InputError if a file or folder is not a checkpoint of SAM 2, and what the
    package raises.
    """
    path = Path(resolve_checkpoint(checkpoint))
    if path.is_dir():
        files = sorted(path.glob("*.pt"))
        if len(files) > 1:
            raise InputError(f"the folder has {len(files)} .pt files; give one of them: {', '.join(f.name for f in files)}")
        if not files:
            return _from_transformers(build_sam, path, target)
        path = files[0]
    elif path.suffix not in (".pt", ".pth"):
        return build_sam.build_sam2_video_predictor_hf(checkpoint, device=target)
    if not path.is_file():
        raise InputError(f"there is no such file; {GIVE}")
    config = _meta_config({name: tuple(tensor.shape) for name, tensor in read_tensors(path)[0].items()})
    return build_sam.build_sam2_video_predictor(config, str(path), device=target)


def _from_transformers(build_sam: Any, folder: Path, target: str) -> Any:
    """Meta's model with the weights of a folder of transformers."""
    from safetensors.torch import load_file

    if not (folder / "model.safetensors").is_file() or not (folder / "config.json").is_file():
        raise InputError(f"the folder has neither a .pt file nor config.json and model.safetensors; {GIVE}")
    tensors = load_file(folder / "model.safetensors")
    # Names that the choice of the size needs, as Meta calls them.
    prefix = "vision_encoder.backbone."
    shapes = {
        f"image_encoder.trunk.{name.removeprefix(prefix)}": tuple(t.shape)
        for name, t in tensors.items()
        if name.startswith(prefix)
    }
    if "occlusion_spatial_embedding_parameter" in tensors:
        shapes["no_obj_embed_spatial"] = ()
    side = json.loads((folder / "config.json").read_text("utf-8")).get("image_size", 1024)
    model = build_sam.build_sam2_video_predictor(
        _meta_config(shapes), None, device=target, hydra_overrides_extra=[] if side == 1024 else image_size_overrides(side)
    )
    model.load_state_dict(to_meta(tensors, model.state_dict()))
    return model


def _meta_config(shapes: dict[str, tuple[int, ...]]) -> str:
    """The configuration file, in Meta's package, of a checkpoint with Meta's names."""
    size, version = model_size(shapes)
    return f"configs/sam{version}/sam{version}_hiera_{size.letter}.yaml"


def image_size_overrides(side: int) -> list[str]:
    """Overrides of Meta's configuration for an input of `side` pixels instead of 1024."""
    sizes = f"feat_sizes=[{side // 16},{side // 16}]"
    layers = [f"++model.memory_attention.layer.{part}.{sizes}" for part in ("self_attention", "cross_attention")]
    return [f"++model.image_size={side}", *layers]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the package's progress bars, warnings and log messages."""

    def plain(items: Iterable[Any], *_: Any, **__: Any) -> Iterable[Any]:
        return items

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.CRITICAL)
        for name in ("sam2.sam2_video_predictor", "sam2.utils.misc"):
            module: Any = sys.modules.get(name)
            if hasattr(module, "tqdm"):
                stack.callback(setattr, module, "tqdm", module.tqdm)
                module.tqdm = plain
        yield


class OfficialSession:
    """One video; its frames are written to `folder`, from which the package reads them."""

    def __init__(self, backend: OfficialBackend, video: Video, folder: Path) -> None:
        self.backend, self.video, self.folder = backend, video, folder
        self._state: Any = None

    def grid_masks(self, t: int, settings: GridSettings) -> RleMasks:
        """Masks (K, 1) of a grid of points in frame t, highest predicted IoU first."""
        generator = self.backend.generator(
            self.backend.model,
            points_per_side=settings.points_per_side,
            points_per_batch=settings.points_per_batch,
            pred_iou_thresh=settings.predicted_iou,
            stability_score_thresh=settings.stability,
            stability_score_offset=settings.stability_offset,
            box_nms_thresh=settings.nms_iou,
        )
        with self.backend.running():
            records = generator.generate(self.video.read(t))
        if not records:
            return RleMasks.empty(0, 1, self.video.size)
        return RleMasks.from_dense(np.stack([record["segmentation"] for record in records])[:, None])

    def whole_grid_masks(self, t: int, settings: GridSettings) -> RleMasks:
        """The masks of `grid_masks`, largest first, without parts of larger ones."""
        return whole_masks(self.grid_masks(t, settings), settings.part)

    def box_masks(self, t: int, boxes: NDArray[np.float32], settings: BoxSettings) -> tuple[RleMasks, NDArray[np.float32]]:
        """One mask for each box (K, 4), x0 y0 x1 y1 in pixels of frame t: masks (K, 1), and their stability (K,)."""
        if not len(boxes):
            return RleMasks.empty(0, 1, self.video.size), np.zeros(0, np.float32)
        masks, scores = [], []
        with self.backend.running(torch.float32):
            images = self.backend.images(self.backend.model)
            images.set_image(self.video.read(t))
            # One box at a time: the masks of all at the frame's size would take gigabytes.
            for box in boxes:
                mask, _, low = images.predict(box=box, multimask_output=False)
                masks.append(np.asarray(mask) > 0)
                scores.append(stability(torch.as_tensor(low), settings.stability_offset))
        return RleMasks.from_dense(np.stack(masks)), torch.cat(scores).numpy()

    def propagate(self, t: int, prompts: Sequence[Prompt]) -> Propagated:
        """Track prompts of frame t through the whole video."""
        model, size = self.backend.model, self.video.size
        rows = RleMasks.from_bytes([[prompt.mask] for prompt in prompts], 1, size)
        # Resized here, so that both backends are prompted with the same pixels.
        masks = resize_mask_prompts(torch.from_numpy(rows.dense()[:, 0]), model.image_size)[:, 0] > 0
        with self.backend.running(), TrackWriter(len(self.video), size) as writer:
            model.reset_state(self.state)
            for i, mask in enumerate(masks):
                model.add_new_mask(self.state, frame_idx=t, obj_id=i, mask=mask)
            for backward in (False, True):
                for s, ids, logits in model.propagate_in_video(self.state, start_frame_idx=t, reverse=backward):
                    if s == t and backward:
                        continue
                    if list(ids) != list(range(len(prompts))):
                        raise RuntimeError(f"Meta's sam2 returned the objects {ids}, expected 0 to {len(prompts) - 1}")
                    pointers, scores = self._outputs(s, len(prompts))
                    writer.put(s, pointers, scores, logits[:, 0])
            return writer.tracks()

    def _outputs(self, s: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pointers (B, C) and score logits (B,) of frame s."""
        objects = [self.state["output_dict_per_obj"][i] for i in range(count)]
        outputs = [one["cond_frame_outputs"].get(s) or one["non_cond_frame_outputs"][s] for one in objects]
        if "object_score_logits" not in outputs[0]:
            raise InputError("Meta's sam2 returned no object scores: it is older than 1.1; install a newer version")
        pointers, scores = (torch.cat([o[name].reshape(1, -1) for o in outputs]) for name in ("obj_ptr", "object_score_logits"))
        return pointers, scores[:, 0]

    @property
    def state(self) -> Any:
        """The package's state of this video, created at the first access."""
        if self._state is None:
            for t in range(len(self.video)):
                # The package requires names in .jpg but reads any format: PNG keeps the pixels.
                # To memory first: Pillow takes no notice when a full disk accepts only a part of a file.
                content = io.BytesIO()
                Image.fromarray(self.video.read(t)).save(content, format="PNG", compress_level=1)
                (self.folder / f"{t:06d}.jpg").write_bytes(content.getvalue())
            self._state = self.backend.model.init_state(str(self.folder), offload_video_to_cpu=True, offload_state_to_cpu=True)
        return self._state
