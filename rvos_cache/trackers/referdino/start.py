"""What a tuning run starts from: a GroundingDINO with a new head, or an imported or tuned checkpoint with its own."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rvos_cache.errors import InputError
from rvos_cache.pretrained import load_frozen, weights_digest
from rvos_cache.system.device import device
from rvos_cache.trackers.grounding_dino import load_tokenizer
from rvos_cache.trackers.referdino.head import HeadSizes, ReferDinoHead
from rvos_cache.trackers.referdino.live import LiveReferDino
from rvos_cache.trackers.referdino.lora import add_lora
from rvos_cache.trackers.referdino.stages import STAGE1, FourStageGroundingDino
from rvos_cache.trackers.referdino.trained import leave_out, select_trained, set_drop_path
from rvos_cache.trackers.referdino.tune_settings import TuneSettings
from rvos_cache.trackers.referdino.upstream import HEAD_FILE, WHAT, load_head, warn_if_behind


@dataclass(frozen=True)
class Start:
    """live: the model with its first weights; trained: the parameters that are trained, by name; digest: of the checkpoint."""

    live: LiveReferDino
    trained: dict[str, nn.Parameter]
    tokenizer: Any
    max_length: int
    digest: dict[str, str]


def load_start(settings: TuneSettings) -> Start:
    """Load the checkpoint and add LoRA and head, whose first weights follow from the seed.

    Raises InputError if the checkpoint cannot be loaded. Warns of parts of its head that the settings replace, and of one
    that is older than its tuning.
    """
    checkpoint = settings.checkpoint
    old = load_head(checkpoint)
    warn_if_behind(checkpoint)
    tokenizer = load_tokenizer(checkpoint, WHAT)
    model: Any = load_frozen(FourStageGroundingDino, checkpoint, WHAT, unread=() if old else (STAGE1,))
    config = model.config
    if old is not None and (old.sizes.channels, old.sizes.map_channels) != (config.d_model, config.backbone_config.embed_dim):
        raise InputError(f"{WHAT} {checkpoint!r}: {HEAD_FILE} has other channels than the model; import the checkpoint again")
    digest = weights_digest(model, checkpoint)
    if old is not None:
        digest |= weights_digest(old, HEAD_FILE)
    # On the CPU, so that first weights are the same on every device.
    model.cpu()
    torch.manual_seed(settings.seed)
    live = make_live(model, None if old is None else old.cpu(), settings)
    trained = select_trained(live, settings.frames == 1, settings.left_out)
    max_length = min(int(config.max_text_len), int(tokenizer.model_max_length))
    return Start(live.to(device()), trained, tokenizer, max_length, digest)


def make_live(model: Any, old: ReferDinoHead | None, settings: TuneSettings) -> LiveReferDino:
    """The model that is trained, from a `FourStageGroundingDino` and the head `old` of its checkpoint; with LoRA in place."""
    head = first_head(model, old, settings)
    if old is None:
        # transformers loads zeros for a norm that the checkpoint lacks.
        norm = model.model.backbone.conv_encoder.model.hidden_states_norms["stage1"]
        norm.reset_parameters()
    add_lora(model, settings.encoder_lora)
    live = LiveReferDino(model, head, settings.options)
    leave_out(live, settings.left_out)
    set_drop_path(live)
    return live


def first_head(model: Any, old: ReferDinoHead | None, settings: TuneSettings) -> ReferDinoHead:
    """A head of the parts that the settings ask for, with the weights of `old` where it has such parts, else new ones.

    Clips of one frame do not train the enhancer: that of `old` stays, and there is no new one.
    """
    default = HeadSizes()
    base = HeadSizes(int(model.config.d_model), int(model.config.backbone_config.embed_dim)) if old is None else old.sizes
    layers = {"deformable": base.mask_layers or default.mask_layers, "dot": 0, "condinst": 0}[settings.mask_head]
    temporal = settings.temporal_layers
    if settings.frames == 1:
        temporal = 0 if old is None else old.sizes.temporal_layers
    sizes = replace(base, temporal_layers=temporal, mask_layers=layers, condinst=settings.mask_head == "condinst")
    head = ReferDinoHead(sizes)
    head.box.load_state_dict(model.bbox_embed[0].state_dict())
    if old is None:
        return head
    for name in ("enhancer", "pyramid", "mask_decoder"):
        own, others = head.get_submodule(name), old.get_submodule(name)
        if own.state_dict().keys() == others.state_dict().keys():
            own.load_state_dict(others.state_dict())
        elif others.state_dict():
            warnings.warn(
                f"{name}: that of {settings.checkpoint} is not used, a new one is trained: it has {len(others.state_dict())} tensors, "
                f"with these settings {len(own.state_dict())} are needed; see temporal_layers and mask_head",
                stacklevel=3,
            )
    return head
