"""A tiny VITA checkpoint: a random Mask2Former of transformers with a random head.

`detectron2_names` returns the same tensors under the names of the released checkpoints, after the public code of VITA,
Mask2Former and detectron2; it shares no code with the converter, which reads them.
"""

from __future__ import annotations

import re
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig

from rvos_cache.trackers.vita.head import HeadSizes, VitaHead

CHANNELS = 32
SIZES = HeadSizes(
    channels=CHANNELS, map_channels=CHANNELS, mask_channels=CHANNELS, frame_queries=6, video_queries=9, classes=5, hidden=48,
    encoder_layers=4, decoder_layers=2,
)  # fmt: skip
SMALL = {"short_side": 64, "long_side": 96}
EMBEDDINGS = ("queries_features.weight", "queries_embedder.weight", "query_feat.weight", "query_embed.weight", "fq_pos.weight")
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def randomised(module: Any, seed: int, spread: float = 0.3) -> Any:
    """`module`, frozen, with every weight random: with norms at 1 and biases at 0 a forgotten tensor would have no effect."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.5 * noise.abs())
            elif "norm" in name and name.endswith("weight"):
                tensor.copy_(1 + spread * noise)
            elif name.endswith(EMBEDDINGS):
                tensor.copy_(2 * noise)
            else:
                # Scaled so that the outputs of a layer have about the scale of its inputs.
                tensor.copy_(noise * (1.3 / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else spread))
    return module.eval().requires_grad_(False)


def mask2former(backbone: Any = "swin") -> Any:
    """A random Mask2Former with 6 frame queries and a Swin or ResNet backbone, or the one of a configuration."""
    if not isinstance(backbone, str):
        inner: Any = backbone
    elif backbone == "swin":
        inner = SwinConfig(embed_dim=8, depths=[1, 2, 2, 1], num_heads=[1, 2, 2, 4], window_size=4, out_features=STAGES)
    else:
        inner = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[1, 2, 1, 2], out_features=STAGES)
    config = Mask2FormerConfig(
        backbone_config=inner, feature_size=CHANNELS, mask_feature_size=CHANNELS, hidden_dim=CHANNELS,
        encoder_feedforward_dim=40, dim_feedforward=48, encoder_layers=2, decoder_layers=4, num_attention_heads=8,
        num_queries=SIZES.frame_queries, num_labels=SIZES.classes,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mask2FormerForUniversalSegmentation(config)
    head = randomised(model, seed=1)
    # As after training: a query samples points near its own, not all over the map.
    for name, tensor in head.state_dict().items():
        if "sampling_offsets.weight" in name:
            tensor.mul_(0.1)
    return head


def vita_head(sizes: HeadSizes = SIZES, seed: int = 2) -> VitaHead:
    """A random head."""
    head: VitaHead = randomised(VitaHead(sizes), seed)
    return head


def write_checkpoint(folder: Path, backbone: str = "swin") -> Path:
    """Write a converted checkpoint, as the tracker loads it, to `folder`."""
    mask2former(backbone).save_pretrained(folder)
    save_file(vita_head().official(), folder / "vita_head.safetensors", {"format": "pt"})
    return folder


@lru_cache
def shared_checkpoint() -> str:
    """One checkpoint for all tests of a process that only read it."""
    folder = tempfile.TemporaryDirectory(prefix="tiny-vita-")
    _FOLDERS.append(folder)
    return str(write_checkpoint(Path(folder.name)))


_FOLDERS: list[Any] = []


def detectron2_names(model: Any, head: VitaHead) -> dict[str, Tensor]:
    """The tensors of both under their released names, including those that only training uses."""
    out = {**mask2former_names(model), "vita_criterion.empty_weight": torch.ones(6)}
    out |= {f"vita_module.sim_embed_frame.{p}": torch.ones(CHANNELS) for p in ("weight", "bias")}
    return out | head.official()


def mask2former_names(model: Any) -> dict[str, Tensor]:
    """The tensors of Mask2Former under their released names, including those that only training uses."""
    tensors = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "criterion.empty_weight" or "swin.layernorm" in name or name.endswith("num_batches_tracked"):
            continue
        official = name
        for pattern, replacement in RENAMED:
            official = re.sub(pattern, replacement, official)
        packed = re.fullmatch(r"(.*)\.(q|k|v)@(weight|bias)", official)
        if packed is None:
            out[official] = tensor
        elif packed[2] == "q":
            # Queries, keys and values are one tensor there.
            out[f"{packed[1]}{packed[3]}"] = torch.cat([tensors[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
    for stage, block in (match.groups() for match in map(TABLE_NAME.fullmatch, list(out)) if match):
        out[f"backbone.layers.{stage}.blocks.{block}.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    out["criterion.empty_weight"] = torch.ones(6)
    return out


TABLE_NAME = re.compile(r"backbone\.layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table")
LAYER = r"^transformer_module\.decoder\.layers\.(\d+)\."
RENAMED = [
    # the Swin backbone
    (r"^pixel_level_module\.encoder\.swin\.embeddings\.patch_embeddings\.projection", "backbone.patch_embed.proj"),
    (r"^pixel_level_module\.encoder\.swin\.embeddings\.norm", "backbone.patch_embed.norm"),
    (r"^pixel_level_module\.encoder\.swin\.encoder\.layers", "backbone.layers"),
    (r"^pixel_level_module\.encoder\.hidden_states_norms\.stage1", "backbone.norm0"),
    (r"^pixel_level_module\.encoder\.hidden_states_norms\.stage2", "backbone.norm1"),
    (r"^pixel_level_module\.encoder\.hidden_states_norms\.stage3", "backbone.norm2"),
    (r"^pixel_level_module\.encoder\.hidden_states_norms\.stage4", "backbone.norm3"),
    (r"(backbone.*)\.layernorm_before", r"\1.norm1"),
    (r"(backbone.*)\.layernorm_after", r"\1.norm2"),
    (r"(backbone.*)\.attention\.relative_position_bias\.relative", r"\1.attn.relative"),
    (r"(backbone.*)\.attention\.o_proj", r"\1.attn.proj"),
    (r"(backbone.*)\.attention\.(q|k|v)_proj\.", r"\1.attn.qkv..\2@"),
    # ResNet
    (r"^pixel_level_module\.encoder\.embedder\.embedder", "backbone.stem.conv1"),
    (r"^pixel_level_module\.encoder\.encoder\.stages\.0\.layers", "backbone.res2"),
    (r"^pixel_level_module\.encoder\.encoder\.stages\.1\.layers", "backbone.res3"),
    (r"^pixel_level_module\.encoder\.encoder\.stages\.2\.layers", "backbone.res4"),
    (r"^pixel_level_module\.encoder\.encoder\.stages\.3\.layers", "backbone.res5"),
    (r"(backbone\.res.*)\.layer\.0\.", r"\1.conv1."),
    (r"(backbone\.res.*)\.layer\.1\.", r"\1.conv2."),
    (r"(backbone\.res.*)\.layer\.2\.", r"\1.conv3."),
    (r"(backbone.*)\.convolution\.weight", r"\1.weight"),
    (r"(backbone.*)\.normalization\.", r"\1.norm."),
    # the pixel decoder
    (r"^pixel_level_module\.decoder\.(adapter_1|layer_1)\.0\.", r"sem_seg_head.pixel_decoder.\1."),
    (r"^pixel_level_module\.decoder\.(adapter_1|layer_1)\.1\.", r"sem_seg_head.pixel_decoder.\1.norm."),
    (r"^pixel_level_module\.decoder\.input_projections", "sem_seg_head.pixel_decoder.input_proj"),
    (r"^pixel_level_module\.decoder\.mask_projection", "sem_seg_head.pixel_decoder.mask_features"),
    (r"^pixel_level_module\.decoder\.level_embed", "sem_seg_head.pixel_decoder.transformer.level_embed"),
    (r"^pixel_level_module\.decoder\.encoder", "sem_seg_head.pixel_decoder.transformer.encoder"),
    (r"(pixel_decoder.*)\.self_attn_layer_norm", r"\1.norm1"),
    (r"(pixel_decoder.*)\.final_layer_norm", r"\1.norm2"),
    (r"(pixel_decoder.*)\.fc(1|2)\.", r"\1.linear\2."),
    # the transformer decoder
    (r"^class_predictor", "sem_seg_head.predictor.class_embed"),
    (r"^transformer_module\.queries_embedder", "sem_seg_head.predictor.query_embed"),
    (r"^transformer_module\.queries_features", "sem_seg_head.predictor.query_feat"),
    (r"^transformer_module\.level_embed", "sem_seg_head.predictor.level_embed"),
    (r"^transformer_module\.input_projections", "sem_seg_head.predictor.input_proj"),
    (r"^transformer_module\.decoder\.layernorm", "sem_seg_head.predictor.decoder_norm"),
    (r"^transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0", r"sem_seg_head.predictor.mask_embed.layers.\1"),
    (LAYER + r"(self_attn)_layer_norm", r"@self_attention_layers.\1.norm"),
    (LAYER + r"cross_attn_layer_norm", r"@cross_attention_layers.\1.norm"),
    (LAYER + r"final_layer_norm", r"@ffn_layers.\1.norm"),
    (LAYER + r"fc(1|2)", r"@ffn_layers.\1.linear\2"),
    (LAYER + r"cross_attn", r"@cross_attention_layers.\1.multihead_attn"),
    (LAYER + r"self_attn\.(q|k|v)_proj\.", r"@self_attention_layers.\1.self_attn.in_proj_.\2@"),
    (LAYER + r"self_attn", r"@self_attention_layers.\1.self_attn"),
    (r"^@", "sem_seg_head.predictor.transformer_"),
]  # fmt: skip
"""(pattern, replacement), applied one after the other: names in transformers to released names."""
