"""SAM 2 as Meta's own package `sam2` has it, for those who installed it: the reference that SOLA's released scripts ran.

It keeps one frame's features, so it encodes a frame again for every batch and direction, and it fills holes of masks where its
CUDA extension is built (`fill_hole_area`, 8 pixels of its low-resolution masks). TQDM_DISABLE=1 silences its bars.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.pretrained import device, weights_digest
from rvos_cache.trackers.sam2.backend import Prompt, Propagated
from rvos_cache.trackers.sam2.generate import stability
from rvos_cache.trackers.sam2.precision import computing, native_dtype
from rvos_cache.trackers.sam2.preprocess import mask_prompts
from rvos_cache.trackers.sam2.settings import GridSettings, Sam2Settings
from rvos_cache.trackers.sam2.track_writer import TrackWriter
from rvos_cache.types import Video


class OfficialBackend:
    """A SAM2VideoPredictor by hub name. Raises InputError when the package or the checkpoint cannot be loaded."""

    def __init__(self, settings: Sam2Settings) -> None:
        try:
            from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator  # type: ignore[import-not-found]
            from sam2.sam2_image_predictor import SAM2ImagePredictor  # type: ignore[import-not-found]
            from sam2.sam2_video_predictor import SAM2VideoPredictor  # type: ignore[import-not-found]
        except ImportError as error:
            raise InputError(
                f"backend=official wants Meta's package sam2, which cannot be imported ({error}); install it from "
                "https://github.com/facebookresearch/sam2 (PyPI's sam2 is not Meta's), or --set backend=transformers"
            ) from error
        self.generator, self.images, self.device = SAM2AutomaticMaskGenerator, SAM2ImagePredictor, device()
        try:
            self.model: Any = SAM2VideoPredictor.from_pretrained(settings.checkpoint, device=str(self.device))
        # What the package raises for an unknown name, a missing file or no network differs.
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"SAM 2 checkpoint {settings.checkpoint!r} cannot be loaded by Meta's package ({line}); give a hub name such as "
                "facebook/sam2-hiera-large"
            ) from error
        self.digest = weights_digest(self.model, settings.checkpoint)
        self.channels = int(self.model.hidden_dim)

    def weight_hashes(self) -> dict[str, str]:
        """Digest of the weights as loaded."""
        return self.digest

    def computing(self) -> AbstractContextManager[None]:
        """No gradients, and bfloat16 on a GPU."""
        return computing(self.device, native_dtype(self.device))

    @contextmanager
    def _session(self, video: Video) -> Iterator[OfficialSession]:
        with tempfile.TemporaryDirectory(prefix="rvos-frames-") as folder:
            yield OfficialSession(self, video, Path(folder))

    def open(self, video: Video) -> AbstractContextManager[OfficialSession]:
        """A session; frames are read when the first prompt is followed. Raises OSError when the disk has no room."""
        return self._session(video)


class OfficialSession:
    """One video; its frames are written to `folder`, where the package reads them."""

    def __init__(self, backend: OfficialBackend, video: Video, folder: Path) -> None:
        self.backend, self.video, self.folder = backend, video, folder
        self._state: Any = None

    def grid_masks(self, t: int, settings: GridSettings) -> RleMasks:
        """Masks (K, 1) of a grid of points in frame t, those expected best first."""
        generator = self.backend.generator(
            self.backend.model,
            points_per_side=settings.points_per_side,
            points_per_batch=settings.points_per_batch,
            pred_iou_thresh=settings.predicted_iou,
            stability_score_thresh=settings.stability,
            stability_score_offset=settings.stability_offset,
            box_nms_thresh=settings.nms_iou,
        )
        with self.backend.computing():
            found = generator.generate(self.video.read(t))
        if not found:
            return RleMasks.empty(0, 1, self.video.size)
        return RleMasks.from_dense(np.stack([record["segmentation"] for record in found])[:, None])

    def box_masks(self, t: int, boxes: NDArray[np.float32], stability_offset: float) -> tuple[RleMasks, NDArray[np.float32]]:
        """One mask for each box (K, 4), x0 y0 x1 y1 in pixels of frame t: masks (K, 1), and their stability (K,)."""
        if not len(boxes):
            return RleMasks.empty(0, 1, self.video.size), np.zeros(0, np.float32)
        with self.backend.computing():
            images = self.backend.images(self.backend.model)
            images.set_image(self.video.read(t))
            # One box at a time: the masks of many in float32 at the frame's size are gigabytes.
            logits = (images.predict(box=box, multimask_output=False, return_logits=True)[0] for box in boxes)
            answers = [(logit > 0, stability(torch.from_numpy(logit), stability_offset)) for logit in logits]
        masks, scores = zip(*answers)
        return RleMasks.from_dense(np.stack(masks)), torch.cat(scores).numpy()

    def propagate(self, t: int, prompts: Sequence[Prompt]) -> Propagated:
        """Follow prompts of frame t through the whole video."""
        model, size = self.backend.model, self.video.size
        rows = RleMasks.from_bytes([[prompt.mask] for prompt in prompts], 1, size)
        # At the model's own size, so that both backends are prompted with the very same pixels.
        masks = mask_prompts(torch.from_numpy(rows.dense()[:, 0]), model.image_size)[:, 0] > 0
        with self.backend.computing(), TrackWriter(len(self.video), size) as writer:
            model.reset_state(self.state)
            for i, mask in enumerate(masks):
                model.add_new_mask(self.state, frame_idx=t, obj_id=i, mask=mask)
            for backward in (False, True):
                for s, ids, logits in model.propagate_in_video(self.state, start_frame_idx=t, reverse=backward):
                    if s == t and backward:
                        continue
                    if list(ids) != list(range(len(prompts))):
                        raise RuntimeError(f"Meta's sam2 answers for the objects {ids}, {len(prompts)} were prompted")
                    pointers, scores = self._answers(s, len(prompts))
                    writer.put(s, pointers, scores, logits[:, 0])
            return writer.tracks()

    def _answers(self, s: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pointers (B, C) and score logits (B,) of frame s."""
        held = [self.state["output_dict_per_obj"][i] for i in range(count)]
        outputs = [one["cond_frame_outputs"].get(s) or one["non_cond_frame_outputs"][s] for one in held]
        if "object_score_logits" not in outputs[0]:
            raise InputError("Meta's sam2 here gives no object scores: it is older than 1.1; install it again")
        pointers, scores = (torch.cat([o[name].reshape(1, -1) for o in outputs]) for name in ("obj_ptr", "object_score_logits"))
        return pointers, scores[:, 0]

    @property
    def state(self) -> Any:
        """The package's state of this video, made when it is asked for first."""
        if self._state is None:
            for t in range(len(self.video)):
                # The package takes names in .jpg and looks at nothing but the content: this one loses no pixel.
                Image.fromarray(self.video.read(t)).save(self.folder / f"{t:06d}.jpg", format="PNG", compress_level=1)
            self._state = self.backend.model.init_state(str(self.folder), offload_video_to_cpu=True, offload_state_to_cpu=True)
        return self._state
