"""SAM 2 of transformers. Each frame is encoded once for tracking, whatever the number of prompts, and in both directions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Sam2VideoModel

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.pretrained import check_model_type, load_frozen, weights_digest
from rvos_cache.system.device import memory_share
from rvos_cache.system.gpu_memory import Parts
from rvos_cache.trackers.sam2 import generate
from rvos_cache.trackers.sam2.backend import Prompt, Propagated, concatenate
from rvos_cache.trackers.sam2.features import Features, FeatureStore
from rvos_cache.trackers.sam2.network import Network
from rvos_cache.trackers.sam2.precision import inference_precision, native_dtype
from rvos_cache.trackers.sam2.prefetch import prefetch
from rvos_cache.trackers.sam2.preprocess import image_pixels, normalise, resize_bicubic, resize_mask_prompts, video_pixels
from rvos_cache.trackers.sam2.propagate import Followers, propagate
from rvos_cache.trackers.sam2.settings import BoxSettings, GridSettings, PromptedSettings, Sam2Settings
from rvos_cache.types import Video

WHAT = "SAM 2 checkpoint"
MODEL_TYPE = "sam2_video"
"""In the config.json of a Sam2VideoModel."""
FEATURES_SHARE = 0.5
"""Share of a GPU's memory that the features of a video take at most, whatever `gpu_memory` is."""
BATCHES_AHEAD = 3
"""Batches of frames that are read while one is encoded."""
READ_THREADS = min(16, os.cpu_count() or 1)
"""Frames that are read, and on a CPU resized, at once."""


class TransformersBackend:
    """A frozen Sam2VideoModel by hub name or folder. Raises InputError if the checkpoint cannot be loaded."""

    def __init__(self, settings: Sam2Settings) -> None:
        if settings.checkpoint.endswith((".pt", ".pth")):
            raise InputError(
                f"{WHAT} {settings.checkpoint!r}: backend=transformers reads folders; run rvos-cache convert-sam2 "
                f"{settings.checkpoint} --out DIR and give DIR, or --set backend=official"
            )
        self.settings = settings
        check_model_type(settings.checkpoint, MODEL_TYPE, WHAT)
        model = load_frozen(Sam2VideoModel, settings.checkpoint, WHAT)
        self.digest = weights_digest(model, settings.checkpoint)
        self.device = model.device
        self.dtype = native_dtype(self.device)
        self.network = Network(model, settings.compile, self.dtype)
        self.followers = Followers(self.network, max(settings.batch, settings.long_batch))
        self.channels = self.network.channels

    def weight_hashes(self) -> dict[str, str]:
        """Digest of the weights as loaded, so that a hub name and a folder of the same weights agree."""
        return self.digest

    def precision(self, dtype: Any = None) -> AbstractContextManager[None]:
        """No gradients, for networks in `dtype` (default: that of tracking, in which features are stored too)."""
        return inference_precision(self.device, dtype or self.dtype, autocast=False)

    @cached_property
    def exact(self) -> Network:
        """The network in float32, whatever the precision of tracking."""
        return self.network if self.dtype == torch.float32 else Network(self.network.model)

    @contextmanager
    def _session(self, video: Video) -> Iterator[TransformersSession]:
        model, settings = self.network.model, self.settings
        widths = (self.channels // 8, self.channels // 4, self.channels)
        shapes = [(width, int(h), int(w)) for width, (h, w) in zip(widths, model.backbone_feature_sizes)]
        on_gpu = 0
        if self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
            on_gpu = int(min(settings.gpu_memory, FEATURES_SHARE * total) * memory_share())
        store = FeatureStore(len(video), shapes, self.dtype, self.device, on_gpu, int(settings.host_memory))
        with store, ThreadPoolExecutor(1) as reader:
            yield TransformersSession(self, video, store, reader)

    def open(self, video: Video) -> AbstractContextManager[TransformersSession]:
        """A session; frames are read when they are needed. Raises OSError if the disk has not enough space."""
        return self._session(video)


class TransformersSession:
    """One video. reader: a thread that reads prompt frames ahead."""

    def __init__(self, backend: TransformersBackend, video: Video, store: FeatureStore, reader: ThreadPoolExecutor) -> None:
        self.backend, self.network, self.video, self._store, self._reader = backend, backend.network, video, store, reader
        # A film is decoded in order, by one thread; files of pictures are read by as many as there are.
        self._of_pictures = len(video.files) == len(video)
        self._ahead: dict[int, Future[NDArray[np.uint8]]] = {}
        self._encoded = False
        self._prompts_at_once = Parts("prompts")
        self._frames_at_once = Parts("frames")

    def grid_masks(self, t: int, settings: GridSettings) -> RleMasks:
        """Masks (K, 1) of a grid of points in frame t, highest predicted IoU first."""
        with self.backend.precision():
            features = self._prompt_features(t, settings, self.network)
            return generate.grid_masks(self.network, features, self.video.size, settings)

    def whole_grid_masks(self, t: int, settings: GridSettings) -> RleMasks:
        """The masks of `grid_masks`, largest first, without parts of larger ones."""
        with self.backend.precision():
            features = self._prompt_features(t, settings, self.network)
            return generate.whole_grid_masks(self.network, features, self.video.size, settings)

    def box_masks(self, t: int, boxes: NDArray[np.float32], settings: BoxSettings) -> tuple[RleMasks, NDArray[np.float32]]:
        """One mask for each box (K, 4), x0 y0 x1 y1 in pixels of frame t: masks (K, 1), and their stability (K,)."""
        if not len(boxes):
            return RleMasks.empty(0, 1, self.video.size), np.zeros(0, np.float32)
        # float32 on a GPU too, as in SOLA's released code.
        with self.backend.precision(torch.float32):
            features = self._prompt_features(t, settings, self.backend.exact)
            return generate.box_masks(self.backend.exact, features, self.video.size, boxes, settings.stability_offset)

    def propagate(self, t: int, prompts: Sequence[Prompt]) -> Propagated:
        """Track prompts of frame t through the whole video: together, or as many at once as fit into GPU memory."""
        return concatenate(list(self._prompts_at_once(lambda part: self._propagate(t, part), prompts)))

    def _propagate(self, t: int, prompts: Sequence[Prompt]) -> Propagated:
        rows = RleMasks.from_bytes([[prompt.mask] for prompt in prompts], 1, self.video.size)
        features = self.features
        with self.backend.precision():
            pixels = torch.from_numpy(rows.dense()[:, 0]).to(self.backend.device)
            masks = resize_mask_prompts(pixels, self.network.side)
            try:
                return propagate(self.backend.followers, features, len(self.video), self.video.size, t, masks)
            except torch.OutOfMemoryError:
                self.backend.followers.clear()
                raise

    def _prompt_features(self, t: int, settings: PromptedSettings, network: Network) -> Features:
        if settings.prompt_features == "video":
            features = self.features
            return features.get(t).to(network.dtype)
        pixels = image_pixels(self._prompt_frame(t, settings), self.network.side, self.backend.device)
        *fine, top = network.encode(normalise(pixels[None]))
        return Features(tuple(fine), top)

    def _prompt_frame(self, t: int, settings: PromptedSettings) -> NDArray[np.uint8]:
        """Frame t; the next prompt frame is read while the GPU works on this one."""
        every = settings.prompt_every
        if not self._of_pictures or every == "half":
            return self.video.read(t)
        frame = self._ahead.pop(t, None) or self._reader.submit(self.video.read, t)
        if t + every < len(self.video):
            self._ahead[t + every] = self._reader.submit(self.video.read, t + every)
        return frame.result()

    @property
    def features(self) -> FeatureStore:
        """The features of every frame for tracking, computed at the first access."""
        if not self._encoded:
            self._encode()
            self._encoded = True
        return self._store

    def _encode(self) -> None:
        count, batch = len(self.video), self.backend.settings.encoder_batch
        with ThreadPoolExecutor(READ_THREADS) as pool, self.backend.precision():
            load = partial(self._load, pool=pool)
            for start, (frames, filled) in zip(range(0, count, batch), prefetch(load, range(0, count, batch), BATCHES_AHEAD)):
                for one in filled:
                    one.result()
                for levels in self._frames_at_once(self._encode_frames, frames):
                    for i in range(min(len(levels[0]), count - start)):
                        self._store.put(start + i, [level[i] for level in levels])
                    start += len(levels[0])

    def _load(self, start: int, pool: ThreadPoolExecutor) -> tuple[torch.Tensor, list[Future[None]]]:
        """A batch of frames (B, H, W, 3) uint8, on a CPU resized to (B, S, S, 3), and the tasks that fill them."""
        batch, side, on_gpu = self.backend.settings.encoder_batch, self.network.side, self.backend.device.type == "cuda"
        count = min(batch, len(self.video) - start)
        # On a GPU every batch has the same size, since attention is planned for each.
        shape = (batch, *self.video.size, 3) if on_gpu else (count, side, side, 3)
        frames = torch.empty(shape, dtype=torch.uint8, pin_memory=on_gpu)
        frames[count:] = 0
        pixels = frames.numpy()

        def fill(i: int, frame: NDArray[np.uint8] | None) -> None:
            frame = self.video.read(start + i) if frame is None else frame
            # A GPU resizes by itself: Pillow takes 15 ms of one core for a frame of 720x1280, twice as long as a GPU encodes it.
            pixels[i] = frame if on_gpu else video_pixels(frame, side).permute(1, 2, 0)

        filled = [pool.submit(fill, i, None if self._of_pictures else self.video.read(start + i)) for i in range(count)]
        return frames, filled

    def _encode_frames(self, frames: torch.Tensor) -> Sequence[torch.Tensor]:
        frames = frames.to(self.backend.device, non_blocking=True)
        pixels = resize_bicubic(frames, self.network.side) if frames.is_cuda else frames.permute(0, 3, 1, 2)
        return self.network.encode(normalise(pixels))
