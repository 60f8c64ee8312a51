"""The frozen model of stage one: GroundingDINO with a pruned decoder, and ReferDINO's head where the checkpoint has one.

Letters: K frames of a pass, Q queries that the last layer keeps, L text tokens, C channels, h w cells of a map.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from rvos_cache.errors import InputError, warn_once
from rvos_cache.pretrained import load_frozen, resolve_checkpoint, weights_digest
from rvos_cache.settings import Settings
from rvos_cache.system.counts import planned_steps
from rvos_cache.system.device import device
from rvos_cache.system.text_files import read_text
from rvos_cache.tensors import read_tensors
from rvos_cache.trackers.grounding_dino import SharedBackbone, load_tokenizer, make_caption
from rvos_cache.trackers.referdino.boxes import refined
from rvos_cache.trackers.referdino.head import ReferDinoHead
from rvos_cache.trackers.referdino.pruning import PrunedLayer, PruneScore, prune_call
from rvos_cache.trackers.referdino.stages import STAGE1, FourStageGroundingDino
from rvos_cache.trackers.referdino.tune_settings import IMAGES, tracker_settings

WHAT = "GroundingDINO checkpoint"
HEAD_FILE = "referdino.safetensors"
"""File in the checkpoint folder with the head's tensors under their released names, LoRA merged."""
RECORD_FILE = "referdino.json"
"""File beside it: what the folder was made from."""
TUNE_FILE = "tune.json"
"""File in the folder of a tuning run, around that of its checkpoint."""
LAST_STATE = "last/state.json"
"""File in that folder with the number of steps of the state that was saved last."""
RECORD_FIX = "tune again, or --export it again"
IMPORT = "import the checkpoint again with rvos-select import-referdino"


@dataclass(frozen=True)
class Queries:
    """What the model gives for K frames and one text, on its device.

    hs: (K, Q, C), best query first; reference: (K, Q, 4), cxcywh before the last refinement; text: (K, L, C), fused with the frame;
    memory: (K, S, C), the encoded levels in a row.
    """

    hs: Tensor
    reference: Tensor
    text: Tensor
    memory: Tensor


@dataclass(frozen=True)
class Maps:
    """What the backbone gives for K frames: levels, projected, (K, C, h, w) from stride 8 on, and stage1 (K, c, h, w) at stride 4."""

    levels: list[Tensor]
    stage1: Tensor


class Upstream:
    """A frozen checkpoint by hub name or folder, in float32.

    keep, score: as in `prune_decoder`. Raises InputError if it cannot be loaded, or its head does not belong to it.
    Attributes: head (None without one), channels C, queries Q.
    """

    def __init__(self, checkpoint: str, keep: float, score: PruneScore) -> None:
        self.checkpoint = checkpoint
        self.head = load_head(checkpoint)
        self.tokenizer: Any = load_tokenizer(checkpoint, WHAT)
        self.model: Any = load_frozen(FourStageGroundingDino, checkpoint, WHAT, unread=() if self.head else (STAGE1,))
        config = self.model.config
        self._check_head(config)
        self.digest = weights_digest(self.model, checkpoint)
        if self.head is not None:
            self.digest |= weights_digest(self.head, HEAD_FILE)
        self.channels: int = config.d_model
        self.queries = kept_queries(config.num_queries, config.decoder_layers, keep)
        self.max_length = min(int(config.max_text_len), int(self.tokenizer.model_max_length))
        self.device = device()
        self.decoder = PrunedDecoder(self.model.model.decoder, keep, score)
        self.model.model.decoder = self.decoder
        self.shared = SharedBackbone(self.model.model)

    def _check_head(self, config: Any) -> None:
        if self.head is None:
            return
        sizes, width = self.head.sizes, config.backbone_config.embed_dim
        if (sizes.channels, sizes.map_channels) != (config.d_model, width):
            raise InputError(
                f"{WHAT} {self.checkpoint!r}: {HEAD_FILE} has {sizes.channels} and {sizes.map_channels} channels, the model "
                f"{config.d_model} and {width}; import one checkpoint of ReferDINO"
            )

    def caption(self, text: str) -> str:
        """`text` as the model reads it, see `make_caption`."""
        return make_caption(text, self.tokenizer, self.max_length)

    def encode(self, images: Tensor, real: Tensor | None = None) -> Maps:
        """The backbone's maps of images (K, 3, h, w); real: bool (h, w), False in their padding, which is at the right and the bottom.

        Raises InputError if they have fewer cells than the model has queries.
        """
        images = images.to(self.device)
        mask = torch.ones(images.shape[2:], dtype=torch.long) if real is None else real.long()
        mask = mask.to(self.device).expand(len(images), -1, -1)
        cells, queries = self.shared.encode(images, mask), self.model.config.num_queries
        if cells < queries:
            raise InputError(
                f"{WHAT} {self.checkpoint!r}: frames of {images.shape[2]}x{images.shape[3]} pixels have {cells} cells, the model needs "
                f"{queries}; give a larger --set short_side"
            )
        return Maps([level for level, _ in self.shared.levels], self.shared.backbone.conv_encoder.stage1)

    def read(self, levels: Sequence[Tensor], caption: str) -> Queries:
        """The queries of one caption in the frames whose maps `levels` are; frames of the size and padding that were encoded last."""
        frames = len(levels[0])
        self.shared.restore(levels)
        ids = self.tokenizer(caption, return_tensors="pt")["input_ids"].to(self.device).expand(frames, -1)
        # The backbone returns the levels above, whatever it is given.
        self.model.model(pixel_values=levels[0].new_zeros(frames, 3, 1, 1), input_ids=ids)
        inputs, layer = self.decoder.last()
        return Queries(layer.hs, layer.reference, inputs["text_encoder_hidden_states"], inputs["vision_encoder_hidden_states"])

    def boxes(self, queries: Tensor, reference: Tensor) -> Tensor:
        """Boxes (..., Q, 4), cxcywh in [0, 1], of queries (..., Q, C) and their references (..., Q, 4)."""
        if self.head is not None:
            return self.head.boxes(queries, reference)
        return refined(self.model.bbox_embed[-1](queries), reference)


class PrunedDecoder(nn.Module):
    """Takes the place of GroundingDINO's decoder and keeps what it was called with, and its last layer."""

    def __init__(self, decoder: nn.Module, keep: float, score: PruneScore) -> None:
        super().__init__()
        self.decoder, self.keep, self.score = decoder, keep, score
        self._last: tuple[dict[str, Any], PrunedLayer] | None = None

    def forward(self, **inputs: Any) -> SimpleNamespace:
        """Run the pruned decoder; the result has the fields of transformers' output, all None."""
        layers = prune_call(self.decoder, inputs, keep=self.keep, score=self.score)
        self._last = inputs, layers[-1]
        names = (
            "last_hidden_state",
            "intermediate_hidden_states",
            "intermediate_reference_points",
            "hidden_states",
            "attentions",
        )
        return SimpleNamespace(**dict.fromkeys(names))

    def last(self) -> tuple[dict[str, Any], PrunedLayer]:
        """The inputs and the last layer of the last call, which are then forgotten."""
        assert self._last is not None
        last, self._last = self._last, None
        return last


def kept_queries(queries: int, layers: int, keep: float) -> int:
    """Number of queries after `layers` layers, each of which keeps ceil(keep * n) of its n."""
    for _ in range(layers):
        queries = math.ceil(queries * keep)
    return queries


def load_head(checkpoint: str) -> ReferDinoHead | None:
    """The head in a checkpoint folder, on the GPU where there is one; None if it has none. Raises InputError if it is damaged, or the
    folder is that of a tuning which has not written it yet."""
    path = Path(resolve_checkpoint(checkpoint)) / HEAD_FILE
    check_exported(path.parent)
    if not path.is_file():
        return None
    how_to_fix = _how_to_export(path.parent) if recorded_settings(path.parent) else IMPORT
    return ReferDinoHead.from_official(read_tensors(path, how_to_fix)).requires_grad_(False).to(device())


def _how_to_export(folder: Path) -> str:
    """The command that writes the tuned checkpoint in `folder` again; of a copy of it, the run that was tuned is not known."""
    record, is_original = read_record(folder), (folder.parent / TUNE_FILE).is_file()
    words = ["rvos-cache", "tune-referdino"]
    for name in ("dataset", "root", "split"):
        words += [f"--{name}", str(record.get(name, name.upper()))]
    words += ["--out", str(folder.parent) if is_original else "RUN", "--export"]
    return (
        f"write it again with {shlex.join(words)}{'' if is_original else ', RUN being the tuning, and copy or import it again'}"
    )


def tuned_settings(folder: Path) -> dict[str, Any]:
    """The settings of the tracker that the checkpoint in `folder` was tuned with; of a released one `resizing` where it is of single
    frames, else none.

    Raises InputError if the record of a folder that was imported or tuned cannot be read.
    """
    settings = recorded_settings(folder)
    # A released checkpoint of single frames has an enhancer that was never trained.
    images = IMAGES if read_record(folder).get("untrained") else {}
    return {**images, **tracker_settings(settings)}


def recorded_settings(folder: Path) -> dict[str, Any]:
    """All settings of `tune-referdino` that made the checkpoint in `folder`; none if it was not tuned. Raises like `tuned_settings`."""
    settings = read_record(folder).get("settings", {})
    if not isinstance(settings, dict):
        raise InputError(f"{folder / RECORD_FILE}: its settings are no object; {RECORD_FIX}")
    return settings


def read_record(folder: Path) -> dict[str, Any]:
    """What the checkpoint in `folder` was made from; nothing if it was neither imported nor tuned. Raises like `tuned_settings`."""
    path = folder / RECORD_FILE
    try:
        record = json.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {RECORD_FIX}") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}: cannot be read (a {type(record).__name__}, no object); {RECORD_FIX}")
    if "source" not in record:
        raise InputError(f'{path}: cannot be read (no "source", which says what the folder was made from); {RECORD_FIX}')
    return record


def warn_if_behind(checkpoint: str | Path) -> None:
    """Warn where a folder `upstream` is older than the state that its tuning saved last, as after an interrupt. Raises like
    `tuned_settings`."""
    folder = Path(resolve_checkpoint(str(checkpoint)))
    done, last = read_record(folder).get("step"), last_step(folder.parent)
    if isinstance(done, int) and last is not None and done < last:
        warn_once(
            f"{folder}: is of step {done}, and {folder.parent} was tuned up to step {last} since; to read that, tune on with the same "
            f"tune-referdino, or {_how_to_export(folder)}"
        )


def check_exported(folder: Path) -> None:
    """Raises InputError where `folder` would be the checkpoint of a tuning that is not finished."""
    if folder.is_dir() or not (folder.parent / TUNE_FILE).is_file():
        return
    step = last_step(folder.parent) or 0
    raise InputError(
        f"{folder.parent}: this tuning is not finished and has no folder {folder.name!r} yet (step {step} was saved last); run the "
        f"same tune-referdino again{', or with --export to write what is saved' if step else ''}"
    )


def steps_of(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """The step of the tuned checkpoint with that record, and the number of steps that its settings ask for; None of a released one."""
    settings = record.get("settings")
    if not isinstance(settings, dict) or not isinstance(record.get("step"), int) or "items" not in record:
        return None
    clips = settings["batch_size"] * settings["accumulate"]
    return record["step"], planned_steps(record["items"], clips, settings["steps"], settings["epochs"])


def last_step(tuning: Path) -> int | None:
    """Number of steps of the state that the tuning in the folder saved last; None where there is no such state."""
    if not (tuning / TUNE_FILE).is_file():
        return None
    try:
        step = json.loads(read_text(tuning / LAST_STATE))["step"]
    except (OSError, ValueError, TypeError, KeyError):
        # `tune-referdino` says what is wrong with it.
        return None
    return step if isinstance(step, int) else None


def warn_of_other_settings(checkpoint: str, settings: Settings) -> None:
    """Warn of settings of the tracker that are not those that the checkpoint was tuned with. Raises like `tuned_settings`."""
    tuned, own = tuned_settings(Path(resolve_checkpoint(checkpoint))), settings.model_dump()
    different = [f"{name}={value}" for name, value in tuned.items() if own[name] != value]
    if different:
        is_tuned = bool(recorded_settings(Path(resolve_checkpoint(checkpoint))))
        how = "tuned" if is_tuned else "trained"
        # Released weights cannot be tuned as they were.
        other = ", or tune with the settings that you extract with" if is_tuned else ""
        words = " ".join(f"--set {pair}" for pair in different)
        warn_once(f"{checkpoint}: was {how} with {', '.join(different)}; extract with {words}{other}")
