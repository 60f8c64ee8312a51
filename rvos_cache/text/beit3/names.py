"""The names of BEiT-3's tensors: those of `Beit3`, and the released ones, without "beit3.", that they are made of."""

from __future__ import annotations

from rvos_cache.tensor_names import TensorNames

PREFIX = "beit3."
"""Prefix of the encoder's tensors in a released checkpoint; all others belong to heads of its training."""
UNREAD = ("vision_embed.mask_token",)
"""Tensors of the encoder that only its pre-training reads."""
_LAYER = "encoder.layers.{i}."
NAMES = TensorNames(
    {
        "layers.{i}.{e}.attention_norm.{p}": (_LAYER + "self_attn_layer_norm.{e}.{p}",),
        "layers.{i}.{e}.qkv.{p}": tuple(_LAYER + f"self_attn.{part}_proj.{{e}}.{{p}}" for part in "qkv"),
        "layers.{i}.{e}.inner_norm.{p}": (_LAYER + "self_attn.inner_attn_ln.{e}.{p}",),
        "layers.{i}.{e}.out.{p}": (_LAYER + "self_attn.out_proj.{e}.{p}",),
        "layers.{i}.{e}.ffn_norm.{p}": (_LAYER + "final_layer_norm.{e}.{p}",),
        "layers.{i}.{e}.fc1.{p}": (_LAYER + "ffn.{e}.fc1.{p}",),
        "layers.{i}.{e}.hidden_norm.{p}": (_LAYER + "ffn.{e}.ffn_layernorm.{p}",),
        "layers.{i}.{e}.fc2.{p}": (_LAYER + "ffn.{e}.fc2.{p}",),
        "norms.{e}.{p}": ("encoder.layer_norm.{e}.{p}",),
        "positions.{e}": ("encoder.embed_positions.{e}.weight",),
        "class_token": ("vision_embed.cls_token",),
        "patches.{p}": ("vision_embed.proj.{p}",),
        "word_vectors.weight": ("text_embed.weight",),
    },
    {"i": r"\d+", "e": "[AB]", "p": "weight|bias"},
)
"""Name of a tensor of `Beit3` -> the released names of its parts, in order along the first axis."""
