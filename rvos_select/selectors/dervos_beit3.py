"""The frozen BEiT-3 that DeRVOS runs on pairs of a frame and an expression, and its outputs kept in memory.

Shapes: R expressions, T frames, S the side of a frame, L words, P patches, D channels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.media.resize import resize_frame
from rvos_cache.store import Card
from rvos_cache.text.beit3 import digest, load, normalise_pixels
from rvos_select.data.batch import FrameArray
from rvos_select.selectors.frozen import FrozenPart

NAME = "beit3"
"""Name of BEiT-3 among DeRVOS's frozen parts."""
GIVE = "give a text cache that was extracted with --encoder beit3, or --set config.understanding=words"


def frozen_part(cards: Sequence[Card], side: int, channels: int) -> FrozenPart:
    """The BEiT-3 that encoded the words of the text caches `cards`, for frames of `side` pixels.

    Raises InputError for words of another encoder, or of two of them; when it is opened, for weights that are not those of the cards,
    or of another width than `channels`.
    """
    digests = [_digest(card) for card in cards]
    if not digests or len(set(digests)) > 1:
        count = len(set(digests))
        raise InputError(f"understanding=beit3: the text caches are of {count} checkpoints of BEiT-3, expected one; {GIVE}")
    checkpoint = str(cards[0].settings["checkpoint"])

    def load_part(name: str) -> nn.Module:
        model = load(name, side)
        if model.sizes.width != channels:
            raise InputError(
                f"{name}: this BEiT-3 has {model.sizes.width} channels, the selector {channels}; --set config.word_channels="
                f"{model.sizes.width}"
            )
        return model

    return FrozenPart(NAME, checkpoint, load_part, digest, digests[0], "the text cache")


def _digest(card: Card) -> str:
    """The digest of the weights that encoded a text cache. Raises InputError for an encoder other than BEiT-3."""
    value = card.weights.get(Path(str(card.settings.get("checkpoint", ""))).name)
    if card.producer != NAME or value is None:
        raise InputError(
            f"understanding=beit3: the words of {card.dataset}/{card.split} are of the encoder {card.producer!r}; {GIVE}"
        )
    return value


def images(frames: FrameArray, side: int, resample: str) -> Tensor:
    """uint8 (T, S, S, 3) of frames uint8 (T, H, W, 3), resized to squares with a filter of Pillow's unless they are.

    Frames that are resized are read one at a time.
    """
    if tuple(frames.shape[1:3]) == (side, side):
        return frames[:]
    filter_ = Image.Resampling[resample.upper()]
    resized = [resize_frame(frame.cpu().numpy(), (side, side), filter_) for frame in frames]
    return torch.from_numpy(np.stack(resized))


class Outputs(NamedTuple):
    """vision: F_v (R, T, P, D), None where it was not requested; words: F_t (R, T, L, D), without meaning in padding."""

    vision: Tensor | None
    words: Tensor


class OutputStore:
    """BEiT-3's outputs of at most `limit` bytes, by the content of the frame and the ids of the words; the oldest are replaced first.

    The content stands for video, frame and expression, because two datasets may name different videos alike.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._entries: OrderedDict[tuple[bytes, bytes], tuple[Tensor | None, Tensor]] = OrderedDict()

    def clear(self) -> None:
        """Forget all outputs."""
        self._entries.clear()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, model: nn.Module, pixels: Tensor, ids: Tensor, mask: Tensor, most: int, vision: bool = True) -> Outputs:
        """The outputs of `model` for R expressions in T frames each: those that are kept, the others computed, `most` at once.

        pixels: uint8 (R, T, S, S, 3); ids: int (R, L); mask: bool (R, L); vision: whether patches are requested.
        """
        r, t = pixels.shape[:2]
        flat, flat_ids, flat_mask = pixels.flatten(0, 1), ids.repeat_interleave(t, 0), mask.repeat_interleave(t, 0)
        if not self.limit:
            parts = [
                _run(model, flat[at], flat_ids[at], flat_mask[at], vision)
                for at in (slice(i, i + most) for i in range(0, r * t, most))
            ]
            return _joined([p[0] for p in parts], [p[1] for p in parts], r)
        keys = _keys(pixels, ids, mask)
        absent = [i for i, key in enumerate(keys) if key not in self._entries or (vision and self._entries[key][0] is None)]
        own = {}
        for first in range(0, len(absent), most):
            at = absent[first : first + most]
            patches, words = _run(model, flat[at], flat_ids[at], flat_mask[at], vision)
            own.update({keys[i]: (None if patches is None else patches[k : k + 1], words[k : k + 1]) for k, i in enumerate(at)})
        chosen = [own[key] if key in own else self._loaded(key, mask.shape[1], pixels.device) for key in keys]
        for i in absent:
            self._keep(keys[i], own[keys[i]], int(flat_mask[i].sum()))
        return _joined([c[0] if vision else None for c in chosen], [c[1] for c in chosen], r)

    def _loaded(self, key: tuple[bytes, bytes], length: int, device: torch.device) -> tuple[Tensor | None, Tensor]:
        patches, words = self._entries[key]
        words = nn.functional.pad(words, (0, 0, 0, length - words.shape[1]))
        return (None if patches is None else patches.to(device)), words.to(device)

    def _keep(self, key: tuple[bytes, bytes], entry: tuple[Tensor | None, Tensor], words: int) -> None:
        # Layers that follow read bfloat16 under autocast, so nothing is lost by keeping that.
        device = entry[1].device.type
        dtype = torch.bfloat16 if torch.is_autocast_enabled(device) else entry[1].dtype
        # Tensors of inference mode could not be read in training later.
        with torch.inference_mode(False):
            kept = tuple(
                None if part is None else part.detach().to("cpu", dtype, copy=True) for part in (entry[0], entry[1][:, :words])
            )
        self._forget(key)
        size = _size(kept)
        if size > self.limit:
            return
        while self.bytes + size > self.limit:
            self._forget(next(iter(self._entries)))
        self._entries[key] = (kept[0], kept[1])  # type: ignore[assignment]
        self.bytes += size

    def _forget(self, key: tuple[bytes, bytes]) -> None:
        if key in self._entries:
            self.bytes -= _size(self._entries.pop(key))


def _run(model: nn.Module, pixels: Tensor, ids: Tensor, mask: Tensor, vision: bool) -> tuple[Tensor | None, Tensor]:
    out = model(normalise_pixels(pixels), ids, mask)
    return (out.vision if vision else None), out.words


def _joined(vision: Sequence[Tensor | None], words: Sequence[Tensor], expressions: int) -> Outputs:
    patches = [part for part in vision if part is not None]
    return Outputs(
        torch.cat(patches).unflatten(0, (expressions, -1)) if patches else None,
        torch.cat(list(words)).unflatten(0, (expressions, -1)),
    )


def _size(entry: Sequence[Tensor | None]) -> int:
    return sum(part.numel() * part.element_size() for part in entry if part is not None)


def _keys(pixels: Tensor, ids: Tensor, mask: Tensor) -> list[tuple[bytes, bytes]]:
    """For each of the R x T pairs."""
    texts = [own[real].cpu().numpy().tobytes() for own, real in zip(ids.long(), mask)]
    return [(_content(frame), text) for row, text in zip(pixels, texts) for frame in row]


def _content(frame: Tensor) -> bytes:
    return blake2b(np.ascontiguousarray(frame.cpu().numpy()).tobytes(), digest_size=16).digest()
