"""Settings of a training run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rvos_cache.settings import Settings
from rvos_select.data.clips import ClipSettings
from rvos_select.data.resident import Residence


class OptimSettings(Settings):
    """AdamW and the schedule of its learning rate; the defaults are SOLA's."""

    lr: float = Field(default=5e-6, gt=0)
    """Learning rate. Source: SOLA's released code."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW. Source: PyTorch's default, which SOLA's released code uses."""
    beta2: float = Field(default=0.999, gt=0, lt=1)
    """Decay rate of the squared gradients of AdamW. Source: PyTorch's default."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient. Source: SOLA's released code."""
    decay_all: bool = True
    """False: no weight decay on norms and embeddings. Source: False in Mask2Former and the systems after it."""
    schedule: Literal["plateau", "cosine", "step", "constant"] = "plateau"
    """How the learning rate changes. Source: plateau in SOLA's released code."""
    patience: int = Field(default=5, ge=0)
    """plateau: epochs without a lower validation loss before the rate is multiplied by `factor`. Source: SOLA's released code."""
    factor: float = Field(default=0.5, gt=0, lt=1)
    """plateau and step: what the rate is multiplied by. Source: SOLA's released code."""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.7,)
    """step: shares of all steps after which the rate is multiplied by `factor`. Source: code of DMVS's relatives."""
    warmup: int = Field(default=0, ge=0)
    """Steps in which the rate rises linearly from zero."""
    rates: dict[str, Annotated[float, Field(gt=0, le=1000)]] = {}
    """Factors of the learning rate of parts of the module: {"adapters": 0.1} trains the parameters that have "adapters" among the
    dotted parts of their names at a tenth of the rate. A name may also be the first parts together ("video.decoder")."""


class TrainSettings(Settings):
    """One training run; the defaults are SOLA's on MeViS."""

    selector: str = "sola"
    """Name in SELECTORS, or "package.module:Class"."""
    config: dict[str, Any] = {}
    """The selector's own settings (`rvos-select settings NAME`); C and D are set from the caches."""
    init: str = ""
    """Weights to start from: a run's folder or a checkpoint file, whose tensors that agree in name and shape are copied; the others
    stay random. Empty: all are random."""
    label_iou: float | None = Field(default=None, gt=0, lt=1)
    """Mean IoU above which a track is a positive; None: what the card of its own cache says (SAM 2: 0.7, flow: 0.5)."""
    label_rule: str = "max_iou"
    """How overlap counts become targets: name in LABEL_RULES, or "package.module:function". Source: max_iou in SOLA section 3.6."""
    weights: dict[str, Annotated[float, Field(gt=0, le=1000)]] = {}
    """How often an epoch takes each video (batch = "video") or expression ("single", "clip") of a training set, by "dataset" or
    "dataset/split"; 1, each once, for a set that is not named. 2 takes each twice; 0.5 half of them, sampled anew each epoch; so an
    epoch is the sum over the sets of weight · items, each rounded."""
    optim: OptimSettings = OptimSettings()
    """Optimiser and learning rate."""
    epochs: int = Field(default=13, ge=1)
    """Passes over the training data. Source: SOLA's released code."""
    batch: Literal["single", "video", "clip"] = "single"
    """single: expressions, each with its own tokens; video: all expressions of a video share everything but the text; clip:
    expressions, each with some frames of its video. Source: single in SOLA's released code."""
    batch_size: int = Field(default=1, ge=1)
    """Expressions per step with batch = "single" or "clip". Source: SOLA's released code."""
    micro_batch: int = Field(default=0, ge=0)
    """single, clip: expressions in memory at once; 0: batch_size. The gradients of the parts of a step are added before the
    optimiser's step, so it changes the memory that a step takes, and neither its samples nor (but for rounding, and for random
    numbers that the module draws itself) its gradient."""
    resident: Residence = "auto"
    """Tokens and words of the whole training set on the device, where each step gathers its own: changes no number. auto: on a GPU
    whose free memory is twice their size; false: each step copies its own from the host."""
    clip: ClipSettings = ClipSettings()
    """clip: which frames."""
    augment: tuple[str, ...] = ()
    """clip: changes of frames, masks and sentences together, one after another: names in AUGMENTATIONS, or
    "package.module:function"; for selectors that read pixels. One that changes the sentence is for those that encode sentences
    themselves."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of all random numbers."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto: bfloat16 autocast on CUDA, float32 on a CPU."""
    cuda_graphs: bool = True
    """On a GPU, for selectors with `static_shapes`: steps are padded to a few shapes, recorded and replayed, which takes the host out
    of the way. Padding changes no loss, but for rounding."""
    hold_out: float = Field(default=0.05, ge=0, lt=1)
    """Share of videos, by hash of their id, held out when no validation cache is given."""
    valid_expressions: int = Field(default=200, ge=0)
    """Validation after each epoch is taken over the first so many expressions by hash of their name; 0: all."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of PyTorch; 0: its own default (OMP_NUM_THREADS)."""
