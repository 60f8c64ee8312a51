"""Settings of `rvos-cache tune-referdino`, and those of ReferDINO's configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from rvos_cache.settings import Settings, build, merge
from rvos_cache.trackers.referdino.alignment import Confidence, Linking
from rvos_cache.trackers.referdino.live import LiveOptions
from rvos_cache.trackers.referdino.pruning import PruneScore

Preset = Literal[
    "mevis_swint", "mevis_swinb", "ytvos_swint", "ytvos_swinb", "davis_swint", "davis_swinb", "coco_swint", "coco_swinb", "a2d_swint",
    "a2d_swinb", "jhmdb_swinb",
]  # fmt: skip
TUNED = ("keep_ratio", "prune_score", "tracker", "alpha", "confidence")
"""Settings of the tracker that a checkpoint is tuned with; and short_side where every clip had that size (augment=none)."""
IMAGES = {"resizing": "image"}
"""Settings of the tracker for a checkpoint of single frames."""
TINY, BASE = "IDEA-Research/grounding-dino-tiny", "IDEA-Research/grounding-dino-base"


class Terms(Settings):
    """A number for each term of the matching costs or of the losses, in the order of ReferDINO's configurations."""

    cls: float = Field(default=2, ge=0)
    """Focal loss of the classes."""
    l1: float = Field(default=1, ge=0)
    """L1 distance of the boxes."""
    giou: float = Field(default=1, ge=0)
    """Generalised IoU of the boxes."""
    mask: float = Field(default=5, ge=0)
    """Focal loss of the masks."""
    dice: float = Field(default=5, ge=0)
    """Dice of the masks."""
    proj: float = Field(default=2, ge=0)
    """Dice of the masks' projections on the axes."""


class TuneSettings(Settings):
    """The settings of `tune-referdino`. A preset replaces defaults, and what is given replaces those of the preset."""

    preset: Preset = "mevis_swint"
    """Configuration of ReferDINO whose weights, rates and clips are the defaults. The paper tests Ref-DAVIS17 with
    the model of ytvos, JHMDB-Sentences with that of a2d; davis and jhmdb are their configurations for training on those (the released
    jhmdb_swint lacks values and cannot be loaded). Source: configs/ of the released code."""
    checkpoint: str = TINY
    """What training starts from: GroundingDINO of transformers, a hub name or a folder, with a new head; or a folder `upstream` that
    `rvos-select import-referdino` or `rvos-cache tune-referdino` wrote, with its own."""
    costs: Terms = Terms()
    """Weights of the matching costs."""
    weights: Terms = Terms()
    """Weights of the losses of each decoder layer and of the encoder."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate for 2 clips in a step; that of a step of n clips is lr * n / 2. Source: the preset, and main.py."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of AdamW, for all trained parameters. Source: released code."""
    max_norm: float = Field(0.1, gt=0)
    """Largest norm of the gradient. Source: released code."""
    epochs: int = Field(10, ge=1)
    """Epochs; in each, every expression has a clip around each of its anchor frames. Source: released code; coco: its README."""
    drop_epoch: int = Field(8, ge=0)
    """Epochs after which the learning rate is multiplied by drop_factor. Source: released code."""
    drop_factor: float = Field(0.1, gt=0, le=1)
    """See drop_epoch. Source: released code; 0.2 for a2d."""
    steps: int = Field(0, ge=0)
    """Stop after so many steps of the optimiser, for a trial; 0: after the last of `epochs`, which is hours to days of real data."""
    batch_size: int = Field(1, ge=1)
    """Clips that are computed together, padded to one size."""
    accumulate: int = Field(2, ge=1)
    """Such batches in a step, one after another. Source: released training for MeViS and Ref-YouTube-VOS: 2 clips on each GPU."""
    frames: int = Field(6, ge=1)
    """T, frames of a clip; of a shorter video all of them, and some of them again. With 1 neither tracker nor enhancer is used, and the
    enhancer is not trained. Source: released code."""
    anchor_every: int = Field(64, ge=1)
    """An anchor frame every so many frames of a video; a dataset that lists the frames it scores (A2D, JHMDB) has those. Source:
    released code; 6 for ytvos."""
    neighbours: int = Field(3, ge=1)
    """A clip has one frame before and one after its anchor, each at most so many frames away. Source: released code."""
    reverse: float = Field(0.3, ge=0, le=1)
    """Probability that a clip runs backwards. Source: released code."""
    augment: Literal["video", "image", "none"] = "video"
    """video, image: flips, crops, sizes, and for video colours, as for the released video and RefCOCO models; none: only resized to
    short_side. Source: released code."""
    short_side: int = Field(360, ge=32)
    """augment=none: pixels of the shorter side of a frame; extract with the same."""
    encoder_lora: bool = True
    """LoRA in the encoder too; false for a2d_swint. Source: released code."""
    temporal_layers: int = Field(3, ge=0)
    """Blocks of the enhancer; 0: none (Table 3). With frames=1 there is none but the one of `checkpoint`. Source: section 4.1."""
    tracker: Linking = "memory"
    """none: queries of different frames are not linked (Table 3); extract with the same."""
    mask_head: Literal["deformable", "dot", "condinst"] = "deformable"
    """What draws masks; dot, condinst: the heads of Table 4."""
    text_ca: bool = True
    """Attention of the mask decoder to the text; false: Table 4."""
    deform_ca: bool = True
    """Deformable attention of the mask decoder to the mask features; false: Table 4."""
    keep_ratio: float = Field(0.5, gt=0, le=1)
    """Share of its queries that each decoder layer keeps (Table 5); extract with the same. Source: section 3.3."""
    prune_score: PruneScore = "code_gate"
    """By what they are kept, as for the tracker `gdino-queries`; random scores are new ones in every step. Source: released code."""
    alpha: float = Field(0.1, ge=0, le=1)
    """Weight of the present frame in the tracker's memory. Source: section 4.1."""
    confidence: Confidence = "code_minmax"
    """What scales that weight, as for the tracker `gdino-queries`. Source: released code."""
    train_noise: Literal["code", "off"] = "code"
    """code: stochastic depth of Swin and of the fusion layers and BERT's dropout stay on while training; off: none. Source: released
    code, whose frozen parts are in training mode."""
    checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto: bf16 on a GPU, float32 on a CPU; the released code trains in float32."""
    seed: int = Field(42, ge=0)
    """Seed of first weights, order, clips and noise. Source: released code."""
    save_every: int = Field(200, ge=1)
    """Steps between two saved states, from which training resumes."""

    readers: int = Field(4, ge=1, exclude=True)
    """Threads that read clips while a step is computed; frames of films are read by one of them at a time. It changes no result."""

    @model_validator(mode="after")
    def _has_room_for_neighbours(self) -> TuneSettings:
        if self.frames == 2:
            raise ValueError("frames: a clip of 2 frames has no room for a frame before and one after; give 1, or 3 or more")
        if self.mask_head != "deformable" and not (self.text_ca and self.deform_ca):
            raise ValueError(f"text_ca, deform_ca: mask_head={self.mask_head} has no such attention")
        return self

    @property
    def clips(self) -> int:
        """Clips of a step."""
        return self.batch_size * self.accumulate

    @property
    def options(self) -> LiveOptions:
        """How the model computes a clip."""
        return LiveOptions(self.keep_ratio, self.prune_score, self.tracker, self.alpha, self.confidence, self.checkpointing)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The attentions of the mask decoder that are left out."""
        return tuple(name for name in ("text_ca", "deform_ca") if not getattr(self, name))

    def rate(self, epoch: int) -> float:
        """The learning rate in an epoch, from 0."""
        return self.lr * self.clips / 2 * (self.drop_factor if epoch >= self.drop_epoch else 1.0)


def _terms(*values: float) -> dict[str, float]:
    return dict(zip(Terms.model_fields, values))


def _same(*values: float) -> dict[str, Any]:
    return {"costs": _terms(*values), "weights": _terms(*values)}


_YTVOS = {**_same(4, 5, 2, 5, 5, 5), "lr": 5e-5, "anchor_every": 6}
_COCO = {**_same(4, 5, 2, 5, 5, 5), "frames": 1, "anchor_every": 1, "epochs": 20, "augment": "image"}
_A2D = {"frames": 1, "anchor_every": 1, "drop_factor": 0.2, "temporal_layers": 1}
PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "mevis_swint": _same(2, 1, 1, 5, 5, 2),
    "mevis_swinb": {**_same(1, 3, 3, 5, 4, 4), "checkpoint": BASE},
    "ytvos_swint": _YTVOS,
    "ytvos_swinb": {**_YTVOS, "checkpoint": BASE},
    "davis_swint": {**_YTVOS, "frames": 3},
    "davis_swinb": {**_YTVOS, "checkpoint": BASE},
    "coco_swint": _COCO,
    "coco_swinb": {**_COCO, "lr": 5e-5, "checkpoint": BASE},
    "a2d_swint": {
        **_A2D, "costs": _terms(4, 5, 2, 2, 5, 5), "weights": _terms(4, 5, 2, 5, 2, 5), "lr": 5e-5, "encoder_lora": False,
    },
    "a2d_swinb": {**_A2D, **_same(1, 3, 3, 5, 4, 4), "checkpoint": BASE},
    "jhmdb_swinb": {**_A2D, **_same(1, 3, 3, 5, 4, 4), "checkpoint": BASE},
}  # fmt: skip
"""What ReferDINO's configurations have instead of the defaults. They train ytvos, davis, a2d and jhmdb from the model of coco: give
it as `checkpoint`."""


def tune_settings(values: Mapping[str, Any]) -> TuneSettings:
    """The settings of the preset with `values` instead of its own. Raises InputError for unknown or wrong ones."""
    given = build(TuneSettings, values, "tune-referdino")
    return build(TuneSettings, merge(PRESETS[given.preset], values), "tune-referdino")


def tracker_settings(tuned: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `gdino-queries` for a checkpoint that was tuned with the settings `tuned`; of those that `tuned` has."""
    names = (*TUNED, "short_side") if tuned.get("augment") == "none" else TUNED
    return {**(IMAGES if tuned.get("frames") == 1 else {}), **{name: tuned[name] for name in names if name in tuned}}
