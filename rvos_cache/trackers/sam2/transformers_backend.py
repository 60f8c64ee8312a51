"""SAM 2 as transformers has it. The image encoder reads each frame of a video once, for all prompts and both directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Sam2VideoModel

from rvos_cache.masks import RleMasks
from rvos_cache.pretrained import load_frozen, weights_digest
from rvos_cache.trackers.sam2 import generate
from rvos_cache.trackers.sam2.backend import Prompt, Propagated
from rvos_cache.trackers.sam2.features import FeatureStore
from rvos_cache.trackers.sam2.network import Network
from rvos_cache.trackers.sam2.precision import computing, native_dtype
from rvos_cache.trackers.sam2.prefetch import ahead
from rvos_cache.trackers.sam2.preprocess import mask_prompts, normalised, resized
from rvos_cache.trackers.sam2.propagate import propagate
from rvos_cache.trackers.sam2.settings import GridSettings, Sam2Settings
from rvos_cache.types import Video


class TransformersBackend:
    """A frozen Sam2VideoModel by hub name or folder. Raises InputError when the checkpoint cannot be loaded."""

    def __init__(self, settings: Sam2Settings) -> None:
        self.settings = settings
        model = load_frozen(Sam2VideoModel, settings.checkpoint, "SAM 2 checkpoint")
        self.digest = weights_digest(model, settings.checkpoint)
        self.network = Network(model, settings.compile)
        self.device = model.device
        self.channels = self.network.channels
        self.dtype = native_dtype(self.device)

    def weight_hashes(self) -> dict[str, str]:
        """Digest of the weights as loaded, so that a name and a folder with the same weights agree."""
        return self.digest

    def computing(self) -> AbstractContextManager[None]:
        """No gradients, and the precision of `dtype`, in which features are kept too."""
        return computing(self.device, self.dtype)

    @contextmanager
    def _session(self, video: Video) -> Iterator[TransformersSession]:
        model, settings = self.network.model, self.settings
        widths = (self.channels // 8, self.channels // 4, self.channels)
        shapes = [(width, int(h), int(w)) for width, (h, w) in zip(widths, model.backbone_feature_sizes)]
        on_gpu = int(settings.gpu_memory) if self.device.type == "cuda" else 0
        with FeatureStore(len(video), shapes, self.dtype, self.device, on_gpu, int(settings.host_memory)) as store:
            yield TransformersSession(self, video, store)

    def open(self, video: Video) -> AbstractContextManager[TransformersSession]:
        """A session; frames are read when the first prompt asks for them. Raises OSError when the disk has no room."""
        return self._session(video)


class TransformersSession:
    """One video."""

    def __init__(self, backend: TransformersBackend, video: Video, store: FeatureStore) -> None:
        self.backend, self.network, self.video, self._store = backend, backend.network, video, store
        self._encoded = False

    def grid_masks(self, t: int, settings: GridSettings) -> RleMasks:
        """Masks (K, 1) of a grid of points in frame t, those expected best first."""
        with self.backend.computing():
            return generate.grid_masks(self.network, self.features.get(t), self.video.size, settings)

    def box_masks(self, t: int, boxes: NDArray[np.float32], stability_offset: float) -> tuple[RleMasks, NDArray[np.float32]]:
        """One mask for each box (K, 4), x0 y0 x1 y1 in pixels of frame t: masks (K, 1), and their stability (K,)."""
        with self.backend.computing():
            return generate.box_masks(self.network, self.features.get(t), self.video.size, boxes, stability_offset)

    def propagate(self, t: int, prompts: Sequence[Prompt]) -> Propagated:
        """Follow prompts of frame t through the whole video."""
        rows = RleMasks.from_bytes([[prompt.mask] for prompt in prompts], 1, self.video.size)
        with self.backend.computing():
            pixels = torch.from_numpy(rows.dense()[:, 0]).to(self.backend.device)
            masks = mask_prompts(pixels, self.network.side)
            return propagate(self.network, self.features, len(self.video), self.video.size, t, masks)

    @property
    def features(self) -> FeatureStore:
        """The features of every frame, made when they are asked for first."""
        if not self._encoded:
            self._encode()
            self._encoded = True
        return self._store

    def _encode(self) -> None:
        count, side = len(self.video), self.network.side
        starts = range(0, count, self.backend.settings.encoder_batch)

        def load(start: int) -> Any:
            frames = range(start, min(start + self.backend.settings.encoder_batch, count))
            return torch.stack([resized(self.video.read(t), side) for t in frames])

        with self.backend.computing():
            for start, pixels in zip(starts, ahead(load, starts, 2)):
                levels = self.network.encode(normalised(pixels.to(self.backend.device)))
                for i in range(len(pixels)):
                    self._store.put(start + i, [level[i] for level in levels])
