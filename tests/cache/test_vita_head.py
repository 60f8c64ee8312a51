"""VITA's head against the released evaluation path written out with torch's own attention, padding, roll and masks."""

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
"""Frames: one; half a window and one more; around a whole window; two; one of a third."""


@pytest.fixture(scope="module")
def head() -> VitaHead:
    return vita_head()


def clips(batch: int, frames: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, frames, NF, CHANNELS, generator=torch.Generator().manual_seed(seed))


def attention(held: dict[str, Tensor], name: str) -> nn.MultiheadAttention:
    """torch's own module with the tensors of the block `name`."""
    made = nn.MultiheadAttention(CHANNELS, 8, batch_first=True)
    made.load_state_dict({k.removeprefix(f"{name}."): v for k, v in held.items() if k.startswith(f"{name}.")})
    # With gradients on, torch takes its plain path.
    return made.eval()


def norm(held: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (CHANNELS,), held[f"{name}.weight"], held[f"{name}.bias"])


def linear(held: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, held[f"{name}.weight"], held[f"{name}.bias"])


def feed(held: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    inner = linear(held, f"{name}.linear1", x).clamp(min=0)
    return norm(held, f"{name}.norm", x + linear(held, f"{name}.linear2", inner))


def released(head: VitaHead, q_f: Tensor, shifts: bool = True) -> dict[str, Tensor]:
    """One clip (T, Nf, C) as the released code runs it. shifts=False: its training path, which never shifts windows."""
    held = {name.removeprefix(PREFIX): tensor for name, tensor in head.official().items()}
    frames, window, half = len(q_f), 6, 3
    padded = -(-frames // window) * window
    x = torch.zeros(padded, NF, CHANNELS)
    x[:frames] = linear(held, "input_proj_dec", q_f)
    absent = torch.arange(padded) >= frames
    for layer in range(SIZES.encoder_layers):
        attend = attention(held, f"enc_self_attn.{layer}.self_attn")
        shifted = shifts and layer % 2 == 1
        rolled, gone = (x.roll(half, 0), absent.roll(half, 0)) if shifted else (x, absent)
        out = []
        for first in range(0, padded, window):
            tokens = rolled[first : first + window].reshape(1, window * NF, CHANNELS)
            missing = gone[first : first + window].repeat_interleave(NF)
            if shifted:
                blocked = torch.zeros(window * NF, window * NF, dtype=torch.bool)
                if first in (0, padded - window):
                    blocked |= missing[:, None] | missing[None, :]
                if first == 0:
                    blocked[: half * NF, half * NF :] = True
                    blocked[half * NF :, : half * NF] = True
                answer = attend(tokens, tokens, tokens, attn_mask=blocked.float() * -1000)[0]
            else:
                answer = attend(tokens, tokens, tokens, key_padding_mask=missing[None])[0]
            tokens = norm(held, f"enc_self_attn.{layer}.norm", tokens + answer)
            out.append(feed(held, f"enc_ffn.{layer}", tokens).reshape(window, NF, CHANNELS))
        x = torch.cat(out)
        if shifted:
            x = x.roll(-half, 0)
    return decode(held, x[:frames])


def decode(held: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    memory = x.reshape(1, -1, CHANNELS)
    keys = memory + held["fq_pos.weight"].repeat(len(x), 1)
    query, place = held["query_feat.weight"][None], held["query_embed.weight"]
    for layer in range(SIZES.decoder_layers):
        cross = attention(held, f"transformer_cross_attention_layers.{layer}.multihead_attn")
        query = query + cross(query + place, keys, memory)[0]
        query = norm(held, f"transformer_cross_attention_layers.{layer}.norm", query)
        own = attention(held, f"transformer_self_attention_layers.{layer}.self_attn")
        query = query + own(query + place, query + place, query)[0]
        query = norm(held, f"transformer_self_attention_layers.{layer}.norm", query)
        query = feed(held, f"transformer_ffn_layers.{layer}", query)
    q_v = norm(held, "decoder_norm", query)[0]
    e = q_v
    for step in range(3):
        e = linear(held, f"mask_embed.layers.{step}", e)
        e = e.clamp(min=0) if step < 2 else e
    return {"q_v": q_v, "logits": linear(held, "class_embed", q_v), "mask_embed": e}


def same(found: VideoQueries, wanted: dict[str, Tensor], clip: int = 0) -> bool:
    return all(torch.allclose(getattr(found, name)[clip], value, atol=2e-5) for name, value in wanted.items())


@pytest.mark.parametrize("frames", EDGES)
def test_the_released_evaluation_path(head: VitaHead, frames: int) -> None:
    q_f = clips(1, frames)
    found = head(q_f)
    assert found.q_v.shape == (1, 9, CHANNELS) and found.logits.shape == (1, 9, 6) and found.mask_embed.shape == (1, 9, CHANNELS)
    assert same(found, released(head, q_f[0]))


@pytest.mark.parametrize("frames", EDGES)
def test_the_training_path_is_another_as_soon_as_a_window_is_shifted(head: VitaHead, frames: int) -> None:
    q_f = clips(1, frames)
    # Up to half a window both have the same neighbours.
    assert same(head(q_f), released(head, q_f[0], shifts=False)) == (frames <= 3)


@pytest.mark.parametrize("frames", EDGES)
def test_each_clip_of_a_batch_is_as_if_it_were_alone(head: VitaHead, frames: int) -> None:
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


def test_only_windows_say_what_time_it_is(head: VitaHead) -> None:
    q_f = clips(2, 12)
    found, swapped = head(q_f), head(q_f.flip(0))
    assert torch.allclose(found.q_v, swapped.q_v.flip(0), atol=1e-5)
    # There are no positions in time: backwards, twelve frames have the same windows, and a frame later they have others.
    assert torch.allclose(found.q_v, head(q_f.flip(1)).q_v, atol=1e-5)
    assert not torch.allclose(found.q_v, head(q_f.roll(1, 1)).q_v, atol=1e-3)


def test_scores_leave_the_void_out() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 1.0, 50.0]]])
    scores = VideoQueries(logits, logits, logits).scores()
    # Three equal classes of which the last is the void; and a query that is sure to be nothing.
    assert torch.allclose(scores, torch.tensor([[1 / 3, 0.0]]), atol=1e-6)


def test_mask_features_are_the_projection_of_each_cell(head: VitaHead) -> None:
    maps = torch.randn(2, CHANNELS, 3, 5, generator=torch.Generator().manual_seed(0))
    found = head.mask_features(maps)
    weight = head.vita_mask_features.weight[:, :, 0, 0]
    assert found.shape == (2, 3, 5, CHANNELS)
    assert torch.allclose(found[1, 2, 4], weight @ maps[1, :, 2, 4] + head.vita_mask_features.bias, atol=1e-5)


def test_the_published_size_has_the_published_number_of_parameters() -> None:
    """13.2 M for Swin-L on OVIS, the two projections of the similarity loss included, which evaluation has no use for."""
    with torch.device("meta"):
        head = VitaHead(HeadSizes(256, 256, 256, 200, 100, 25, 2048, 6, 3))
    count = sum(p.numel() for p in head.parameters())
    assert round((count + 2 * (256 * 256 + 256)) / 1e6, 1) == 13.2


@pytest.mark.parametrize("bad", [(0, 6, NF, CHANNELS - 1), (1, 0, NF, CHANNELS), (1, 6, NF + 1, CHANNELS), (6, NF, CHANNELS)])
def test_frame_queries_of_another_shape_are_refused(head: VitaHead, bad: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"wanted \\(B, T, {NF}, {CHANNELS}\\)"):
        head(torch.zeros(bad))


def test_released_tensors_give_the_head_back_with_sizes_read_from_them() -> None:
    sizes = replace(SIZES, video_queries=4, frame_queries=3, classes=2, hidden=24, encoder_layers=3, decoder_layers=1)
    head = vita_head(sizes)
    held: dict[str, Any] = head.official()
    # The rest of a checkpoint lies beside them; and the similarity loss' projections among them.
    held |= {"backbone.norm0.weight": torch.ones(3), f"{PREFIX}sim_embed_clip.weight": torch.ones(2, 2)}
    again = VitaHead.from_official(held)
    assert again.sizes == sizes and not again.training and not any(p.requires_grad for p in again.parameters())
    assert {k: v.tolist() for k, v in again.official().items()} == {k: v.tolist() for k, v in head.official().items()}


WHOLE = vita_head().official()


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_each_tensor_is_wanted_in_its_shape(name: str) -> None:
    held = dict(WHOLE)
    short = {**held, name: held[name][..., :-1]}
    # Embeddings say how many queries there are, and have only their width to be wrong.
    with pytest.raises(InputError):
        VitaHead.from_official(short)
    del held[name]
    with pytest.raises(InputError, match=f"'{name}' is missing"):
        VitaHead.from_official(held)


def test_a_tensor_that_is_none_of_the_head_is_named() -> None:
    held = {**vita_head().official(), f"{PREFIX}memory.weight": torch.ones(2)}
    with pytest.raises(InputError, match=r"'vita_module\.memory\.weight' is none of VITA's head"):
        VitaHead.from_official(held)


def test_half_precision_tensors_are_read_as_float32() -> None:
    held = {name: tensor.half() for name, tensor in vita_head().official().items()}
    assert all(p.dtype == torch.float32 for p in VitaHead.from_official(held).parameters())
