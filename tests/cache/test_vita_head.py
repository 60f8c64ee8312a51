"""The VITA head against the released evaluation path, written with torch's attention, padding, roll and masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_vita import CHANNELS, SIZES, vita_head
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.errors import InputError
from rvos_cache.trackers.vita.head import PREFIX, HeadSizes, VideoQueries, VitaHead

NF = SIZES.frame_queries
EDGES = (1, 3, 4, 5, 6, 7, 12, 13)
"""Numbers of frames: one; half a window and one more; around a whole window; two windows and one frame more."""


@pytest.fixture(scope="module")
def head() -> VitaHead:
    return vita_head()


def clips(batch: int, frames: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, frames, NF, CHANNELS, generator=torch.Generator().manual_seed(seed))


def attention(tensors: dict[str, Tensor], name: str) -> nn.MultiheadAttention:
    """torch's module with the tensors of the block `name`."""
    module = nn.MultiheadAttention(CHANNELS, 8, batch_first=True)
    module.load_state_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")})
    # With gradients enabled, torch uses its plain implementation.
    return module.eval()


def norm(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (CHANNELS,), tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def linear(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def feed(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    inner = linear(tensors, f"{name}.linear1", x).clamp(min=0)
    return norm(tensors, f"{name}.norm", x + linear(tensors, f"{name}.linear2", inner))


def released(head: VitaHead, q_f: Tensor, shifts: bool = True) -> dict[str, Tensor]:
    """The outputs of the released code for one clip (T, Nf, C). shifts=False: its training path, which never shifts windows."""
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in head.official().items()}
    frames, window, half = len(q_f), 6, 3
    padded = -(-frames // window) * window
    x = torch.zeros(padded, NF, CHANNELS)
    x[:frames] = linear(tensors, "input_proj_dec", q_f)
    absent = torch.arange(padded) >= frames
    for layer in range(SIZES.encoder_layers):
        attend = attention(tensors, f"enc_self_attn.{layer}.self_attn")
        shifted = shifts and layer % 2 == 1
        rolled, padding = (x.roll(half, 0), absent.roll(half, 0)) if shifted else (x, absent)
        out = []
        for first in range(0, padded, window):
            window_tokens = rolled[first : first + window].reshape(1, window * NF, CHANNELS)
            missing = padding[first : first + window].repeat_interleave(NF)
            if shifted:
                blocked = torch.zeros(window * NF, window * NF, dtype=torch.bool)
                if first in (0, padded - window):
                    blocked |= missing[:, None] | missing[None, :]
                if first == 0:
                    blocked[: half * NF, half * NF :] = True
                    blocked[half * NF :, : half * NF] = True
                attended = attend(window_tokens, window_tokens, window_tokens, attn_mask=blocked.float() * -1000)[0]
            else:
                attended = attend(window_tokens, window_tokens, window_tokens, key_padding_mask=missing[None])[0]
            normed = norm(tensors, f"enc_self_attn.{layer}.norm", window_tokens + attended)
            out.append(feed(tensors, f"enc_ffn.{layer}", normed).reshape(window, NF, CHANNELS))
        x = torch.cat(out)
        if shifted:
            x = x.roll(-half, 0)
    return decode(tensors, x[:frames])


def decode(tensors: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    memory = x.reshape(1, -1, CHANNELS)
    keys = memory + tensors["fq_pos.weight"].repeat(len(x), 1)
    query, position = tensors["query_feat.weight"][None], tensors["query_embed.weight"]
    for layer in range(SIZES.decoder_layers):
        cross = attention(tensors, f"transformer_cross_attention_layers.{layer}.multihead_attn")
        query = query + cross(query + position, keys, memory)[0]
        query = norm(tensors, f"transformer_cross_attention_layers.{layer}.norm", query)
        own = attention(tensors, f"transformer_self_attention_layers.{layer}.self_attn")
        query = query + own(query + position, query + position, query)[0]
        query = norm(tensors, f"transformer_self_attention_layers.{layer}.norm", query)
        query = feed(tensors, f"transformer_ffn_layers.{layer}", query)
    q_v = norm(tensors, "decoder_norm", query)[0]
    e = q_v
    for step in range(3):
        e = linear(tensors, f"mask_embed.layers.{step}", e)
        e = e.clamp(min=0) if step < 2 else e
    return {"q_v": q_v, "logits": linear(tensors, "class_embed", q_v), "mask_embed": e}


def same(queries: VideoQueries, expected: dict[str, Tensor], clip: int = 0) -> bool:
    return all(torch.allclose(getattr(queries, name)[clip], value, atol=2e-5) for name, value in expected.items())


@pytest.mark.parametrize("frames", EDGES)
def test_the_released_evaluation_path(head: VitaHead, frames: int) -> None:
    q_f = clips(1, frames)
    queries = head(q_f)
    assert queries.q_v.shape == queries.mask_embed.shape == (1, 9, CHANNELS) and queries.logits.shape == (1, 9, 6)
    assert same(queries, released(head, q_f[0]))


@pytest.mark.parametrize("frames", EDGES)
def test_the_training_path_differs_as_soon_as_a_window_is_shifted(head: VitaHead, frames: int) -> None:
    q_f = clips(1, frames)
    # Up to half a window both attend to the same frames.
    assert same(head(q_f), released(head, q_f[0], shifts=False)) == (frames <= 3)


@pytest.mark.parametrize("frames", EDGES)
def test_clips_of_a_batch_do_not_influence_each_other(head: VitaHead, frames: int) -> None:
    q_f = clips(4, frames, seed=frames)
    together = head(q_f)
    for b in range(4):
        alone = head(q_f[b : b + 1])
        assert same(together, {name: getattr(alone, name)[0] for name in ("q_v", "logits", "mask_embed")}, b)


def test_training_mode_changes_nothing(head: VitaHead) -> None:
    q_f = clips(2, 7)
    evaluated = head(q_f)
    trained = vita_head().train()(q_f)
    assert torch.equal(evaluated.logits, trained.logits)


def test_only_windows_depend_on_time(head: VitaHead) -> None:
    q_f = clips(2, 12)
    queries, swapped = head(q_f), head(q_f.flip(0))
    assert torch.allclose(queries.q_v, swapped.q_v.flip(0), atol=1e-5)
    # There are no positions in time: reversed, twelve frames have the same windows; shifted by one frame, they have others.
    assert torch.allclose(queries.q_v, head(q_f.flip(1)).q_v, atol=1e-5)
    assert not torch.allclose(queries.q_v, head(q_f.roll(1, 1)).q_v, atol=1e-3)


def test_scores_exclude_the_void_class() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 1.0, 50.0]]])
    scores = VideoQueries(logits, logits, logits).scores()
    # Three classes of equal probability, the last of which is the void; and a query with the void as its certain class.
    assert torch.allclose(scores, torch.tensor([[1 / 3, 0.0]]), atol=1e-6)


def test_mask_features_are_the_projection_of_each_cell(head: VitaHead) -> None:
    maps = torch.randn(2, CHANNELS, 3, 5, generator=torch.Generator().manual_seed(0))
    features = head.mask_features(maps)
    weight = head.vita_mask_features.weight[:, :, 0, 0]
    assert features.shape == (2, 3, 5, CHANNELS)
    assert torch.allclose(features[1, 2, 4], weight @ maps[1, :, 2, 4] + head.vita_mask_features.bias, atol=1e-5)


def test_the_published_size_has_the_published_number_of_parameters() -> None:
    """13.2 M for Swin-L on OVIS, including the two projections of the similarity loss, which evaluation does not use."""
    with torch.device("meta"):
        head = VitaHead(HeadSizes(256, 256, 256, 200, 100, 25, 2048, 6, 3))
    count = sum(p.numel() for p in head.parameters())
    assert round((count + 2 * (256 * 256 + 256)) / 1e6, 1) == 13.2


@pytest.mark.parametrize("bad", [(0, 6, NF, CHANNELS - 1), (1, 0, NF, CHANNELS), (1, 6, NF + 1, CHANNELS), (6, NF, CHANNELS)])
def test_frame_queries_of_another_shape_are_refused(head: VitaHead, bad: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"expected frame queries \\(B, T, {NF}, {CHANNELS}\\)"):
        head(torch.zeros(bad))


def test_a_head_is_restored_from_its_released_tensors_with_sizes_read_from_them() -> None:
    sizes = replace(SIZES, video_queries=4, frame_queries=3, classes=2, hidden=24, encoder_layers=3, decoder_layers=1)
    head = vita_head(sizes)
    tensors: dict[str, Any] = head.official()
    # A checkpoint also contains the backbone and the projections of the similarity loss.
    tensors |= {"backbone.norm0.weight": torch.ones(3), f"{PREFIX}sim_embed_clip.weight": torch.ones(2, 2)}
    restored = VitaHead.from_official(tensors)
    assert restored.sizes == sizes and not restored.training and not any(p.requires_grad for p in restored.parameters())
    assert {k: v.tolist() for k, v in restored.official().items()} == {k: v.tolist() for k, v in head.official().items()}


RELEASED = vita_head().official()


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_a_missing_or_misshapen_tensor_is_refused(name: str) -> None:
    # The last axis: the first axis of an embedding is a number of queries, which may have any value.
    with pytest.raises(InputError):
        VitaHead.from_official({**RELEASED, name: RELEASED[name][..., :-1]})
    with pytest.raises(InputError, match=f"'{name}' is missing"):
        VitaHead.from_official({other: tensor for other, tensor in RELEASED.items() if other != name})


def test_an_unknown_tensor_is_named() -> None:
    tensors = {**vita_head().official(), f"{PREFIX}memory.weight": torch.ones(2)}
    with pytest.raises(InputError, match=r"'vita_module\.memory\.weight' is not one of a VITA checkpoint"):
        VitaHead.from_official(tensors)


def test_half_precision_tensors_are_read_as_float32() -> None:
    tensors = {name: tensor.half() for name, tensor in vita_head().official().items()}
    assert all(p.dtype == torch.float32 for p in VitaHead.from_official(tensors).parameters())
