"""Settings of stage 0 of DeRVOS: the temporal refiner of DVIS++ trained on images, together with TAIS."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rvos_cache.media.geometry import DIVISOR, STRIDE
from rvos_cache.settings import Settings
from rvos_cache.text.beit3.encoder import Beit3Settings
from rvos_cache.text.beit3.network import PATCH
from rvos_select.selectors.dervos.config import DervosConfig


class RefinerSettings(Settings):
    """The settings of `pipelines.dervos_refiner`. The summary of DeRVOS states the losses and the datasets, not how long it trains."""

    dvis: str
    """Folder that `rvos-cache convert-dvis` wrote: the refiner that training starts from, and the parts that stay frozen."""
    beit3: Beit3Settings
    """beit3.checkpoint: folder that `rvos-cache convert-beit3` wrote; beit3.longest and the others: how sentences are read."""
    side: int = Field(640, ge=DIVISOR, multiple_of=DIVISOR)
    """Pixels of both sides of the image that DVIS++ reads, as in the setting `side` of the tracker `dvis`. Source: DeRVOS."""
    config: DervosConfig = DervosConfig()
    """Settings of TAIS, and the costs and weights of its classes, as for `--selector dervos`; channels are those of the checkpoints."""
    train_refiner: Literal["all", "no_time"] = "all"
    """all: the whole refiner; no_time: all but the layers along time. In an image time attention has one key and a convolution sees
    the sum of its kernel alone, so what these layers do in a video changes without being trained. Source of all: the summary."""
    bce_weight: float = Field(5.0, ge=0)
    dice_weight: float = Field(5.0, ge=0)
    """Of the losses of the matched tracks' masks. Source: DVIS++'s configurations."""
    points: int = Field(12544, ge=1)
    """Points of a mask at which costs and losses are computed. Source: the same."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate of AdamW. Source: the same."""
    weight_decay: float = Field(0.05, ge=0)
    """None on norms and embeddings. Source: the same. It also shrinks weights whose gradient is 0, such as those of the queries and
    keys of time attention."""
    max_norm: float = Field(0.01, gt=0)
    """Largest norm of the gradient. Source: the same."""
    epochs: int = Field(3, ge=1)
    """Epochs; in each, every expression is shown once."""
    drop_epoch: int = Field(2, ge=0)
    """Epochs after which the learning rate is multiplied by drop_factor."""
    drop_factor: float = Field(0.1, gt=0, le=1)
    """See drop_epoch."""
    steps: int = Field(0, ge=0)
    """Stop after so many steps of the optimiser; 0: after the last epoch."""
    batch_size: int = Field(8, ge=1)
    """Pairs of an image and an expression in a step. Source: 8 clips in DVIS++'s configurations."""
    seed: int = Field(42, ge=0)
    """Seed of TAIS's first weights, order, points and dropout."""
    save_every: int = Field(500, ge=1)
    """Steps between two saved states, from which training resumes."""
    readers: int = Field(4, ge=1, exclude=True)
    """Threads that read images while a step is computed; frames of films are read by one of them at a time. It changes no result."""

    @model_validator(mode="after")
    def _fitting(self) -> RefinerSettings:
        if self.config.understanding != "beit3" or self.config.queries != "tokens":
            raise ValueError("config: stage 0 trains on tokens and BEiT-3; leave understanding and queries as they are")
        if self.config.side % PATCH or (self.side // STRIDE) % (self.config.side // PATCH):
            raise ValueError(
                f"config.side={self.config.side}: expected a multiple of {PATCH} whose number of patches divides the "
                f"{self.side // STRIDE} cells of the stride-4 map of side={self.side}"
            )
        return self

    @property
    def clips(self) -> int:
        """Images of a step."""
        return self.batch_size

    @property
    def pool(self) -> int:
        """Cells along the side of the averaged mask features: the patches of BEiT-3."""
        return self.config.side // PATCH

    def rate(self, epoch: int) -> float:
        """The learning rate in an epoch, from 0."""
        return self.lr * (self.drop_factor if epoch >= self.drop_epoch else 1.0)
