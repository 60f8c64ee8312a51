"""TAIS against an implementation of one expression with loops, its published sizes, and what must change nothing or something."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_dervos import MAPS, SIDE, TOKENS, WORDS, Inputs, dervos, inputs, score
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.errors import InputError
from rvos_cache.settings import build
from rvos_select.selectors.dervos import Dervos, DervosConfig, dilated
from rvos_select.selectors.dervos_layers import FIRST_SCALE

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
CONFIGS: list[dict[str, Any]] = [
    {},
    {"understanding": "words"},
    {"understanding": "words", "map_channels": 0},
    {"map_channels": 0},
    {"mgis": False},
    {"tais": "direct"},
    {"cfma_scope": "clip", "text_time": "mean"},
    {"sentence": "first", "query_channels": 0},
]
NAMES = [",".join(f"{k}={v}" for k, v in c.items()) or "full" for c in CONFIGS]


@pytest.fixture(params=CONFIGS, ids=NAMES)
def model(request: pytest.FixtureRequest) -> Dervos:
    return dervos(**request.param)


# An implementation of one expression without padding, from the plan's section 2.3.

Tensors = dict[str, Tensor]


def linear(s: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def norm(s: Tensors, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return x * s[f"{name}.weight"] + s[f"{name}.bias"]


def attend(s: Tensors, name: str, query: Tensor, key: Tensor, x: Tensor, memory: Tensor) -> Tensor:
    """norm(x + attention) of query (Q, C) and key, memory (K, C)."""
    heads, d = 8, x.shape[1]
    weights, biases = s[f"{name}.attention.in_proj_weight"].chunk(3), s[f"{name}.attention.in_proj_bias"].chunk(3)
    q, k, v = (y @ w.T + b for y, w, b in zip((query, key, memory), weights, biases))
    out = []
    for h in range(heads):
        at = slice(h * d // heads, (h + 1) * d // heads)
        out.append((q[:, at] @ k[:, at].T / math.sqrt(d // heads)).softmax(-1) @ v[:, at])
    return norm(s, f"{name}.norm", x + linear(s, f"{name}.attention.out_proj", torch.cat(out, -1)))


def feed(s: Tensors, name: str, x: Tensor) -> Tensor:
    return norm(s, f"{name}.norm", x + linear(s, f"{name}.linear2", F.relu(linear(s, f"{name}.linear1", x))))


def meet(s: Tensors, name: str, cells: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    x, y = norm(s, f"{name}.cell_norm", cells), norm(s, f"{name}.word_norm", words)
    queries, keys = linear(s, f"{name}.cell_query", x), linear(s, f"{name}.word_query", y)
    values = {"cell": linear(s, f"{name}.cell_value", x), "word": linear(s, f"{name}.word_value", y)}
    of_words, of_cells = [], []
    for at in torch.arange(x.shape[1]).chunk(8):
        affinity = queries[:, at] @ keys[:, at].T / math.sqrt(len(at))
        of_words.append(affinity.softmax(1) @ values["word"][:, at])
        of_cells.append(affinity.T.softmax(1) @ values["cell"][:, at])
    cells = cells + s[f"{name}.cell_scale"] * linear(s, f"{name}.cell_out", torch.cat(of_words, 1))
    return cells, words + s[f"{name}.word_scale"] * linear(s, f"{name}.word_out", torch.cat(of_cells, 1))


def sine(position: float, channels: int) -> Tensor:
    angles = [position / 10_000 ** (2 * (k // 2) / channels) for k in range(channels)]
    return torch.tensor([math.sin(a) if k % 2 == 0 else math.cos(a) for k, a in enumerate(angles)])


def place(channels: int) -> Tensor:
    """(P, C): row in the first half, column in the second, the last one at 2π."""
    steps = [(i + 1) * 2 * math.pi / (SIDE + 1e-6) for i in range(SIDE)]
    half = channels // 2
    return torch.stack([torch.cat([sine(y, half), sine(x, half)]) for y in steps for x in steps])


def project(s: Tensors, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return norm(s, f"{name}.1", linear(s, f"{name}.0", x), eps)


def plain(model: Dervos, x: Inputs, b: int) -> Tensor:
    """S_f (N, T, 2) of expression `b`."""
    s, c = {k.removeprefix("tais."): v for k, v in model.state_dict().items()}, model.config
    frames = range(x.q.shape[2])
    tracks = [project(s, "track_projection", x.q[b, :, t]) for t in frames]
    words = [project(s, "word_projection", x.words[b, t if x.words.shape[1] > 1 else 0], 1e-12) for t in frames]
    first_words = list(words)
    cells: list[Tensor | None] = [None for _ in frames]
    for t in frames:
        maps = c.map_channels and c.tais == "full"
        parts = [project(s, "map_projection", x.maps[b, t])] if maps else []
        parts += [project(s, "patch_projection", x.vision[b, t])] if c.reads_patches else []
        cells[t] = project(s, "fusion", torch.cat(parts, 1)) if len(parts) == 2 else (parts[0] if parts else None)
    for i in range(c.cfma_layers):
        name = f"cfma.{i}"
        if c.tais == "direct":
            tracks = [feed(s, f"{name}.feed", attend(s, f"{name}.words", q, w, q, w)) for q, w in zip(tracks, words)]
            continue
        for t in frames:
            if cells[t] is not None:
                cells[t], words[t] = meet(s, f"{name}.meet", cells[t], words[t])
        for t in frames:
            if cells[t] is not None:
                at = [t] if c.cfma_scope == "frame" else list(frames)
                memory = torch.cat([cells[i] for i in at])
                keys = memory + place(c.width).repeat(len(at), 1)
                tracks[t] = attend(s, f"{name}.cells", tracks[t], keys, tracks[t], memory)
            tracks[t] = attend(s, f"{name}.words", tracks[t], words[t], tracks[t], words[t])
            tracks[t] = attend(s, f"{name}.others", tracks[t], tracks[t], tracks[t], tracks[t])
            tracks[t] = feed(s, f"{name}.feed", tracks[t])
    if c.mgis and c.tais == "full":
        tracks = select(model, s, x, b, tracks, first_words)
    out = [linear(s, "head.1", norm(s, "head.0", q)) for q in tracks]
    return torch.stack(out, 1)


def select(model: Dervos, s: Tensors, x: Inputs, b: int, tracks: list[Tensor], words: list[Tensor]) -> list[Tensor]:
    """MGIS: tracks T of (N, C), words T of (L, C), the projected ones."""
    c, frames = model.config, range(len(tracks))
    code = [sine(float(x.times[b, t] - x.times[b, 0]), c.width) for t in frames]
    memory, keys = [], []
    for t in frames:
        sentence = words[t][0] if c.sentence == "first" else words[t].mean(0)
        own = torch.cat([words[t][x.motion_words[b]], sentence[None]])
        memory.append(own)
        keys.append(own + code[t])
    if c.text_time == "mean":
        memory = keys = [torch.stack(memory).mean(0)]
    own = s["motion_position.weight"]
    motion = s["motion_query.weight"]
    for i in range(c.sem_layers):
        name = f"sem_decoder.{i}"
        motion = attend(s, f"{name}.others", motion + own, motion + own, motion, motion)
        motion = attend(s, f"{name}.text", motion + own, torch.cat(keys), motion, torch.cat(memory))
        motion = feed(s, f"{name}.feed", motion)
    rows = []
    for n in range(len(tracks[0])):
        track = torch.stack([tracks[t][n] for t in frames])
        for i in range(c.mgis_layers):
            name = f"mgis.{i}"
            coded = track + torch.stack(code)
            track = attend(s, f"{name}.frames", coded, coded, track, track)
            track = feed(s, f"{name}.feed", attend(s, f"{name}.motion", track, motion, track, motion))
        rows.append(track)
    return list(torch.stack(rows, 1))


def test_equals_the_plain_implementation(model: Dervos) -> None:
    x = inputs()
    if model.config.understanding == "words":
        x = x.with_(words=x.words[:, :1], vision=None)
    scores = score(model, x)
    for b in range(2):
        torch.testing.assert_close(scores[b], plain(model, x, b), **CLOSE)


# Section 10.2 of the plan.


@pytest.mark.parametrize(
    ("values", "parameters"),
    [
        ({}, 16_919_554),
        ({"sem_layers": 1, "cfma_layers": 1, "mgis_layers": 1}, 6_127_106),
        ({"sem_layers": 2, "cfma_layers": 2, "mgis_layers": 2}, 11_523_330),
        ({"word_channels": 1024}, 17_050_626),
        ({"token_channels": 256}, 16_854_018),
        ({"understanding": "words"}, 16_590_338),
        ({"mgis": False}, 7_441_922),
        ({"tais": "direct"}, 4_275_458),
    ],
)
def test_sizes(values: dict[str, Any], parameters: int) -> None:
    assert sum(p.numel() for p in Dervos(DervosConfig(**values)).parameters()) == parameters


def test_first_values() -> None:
    tais = Dervos(DervosConfig(**{"width": 64, "hidden": 32})).tais
    assert (tais.head[1].bias == 0).all() and (tais.cfma[0].meet.cell_scale == FIRST_SCALE).all()
    assert 0.9 < tais.motion_query.weight.std() < 1.1
    weight = tais.mgis[0].feed.linear1.weight
    assert weight.abs().max() <= math.sqrt(6 / sum(weight.shape)) < 1.1 * weight.abs().max()


# Section 10.4.


def test_permuted_tracks_permute_scores(model: Dervos) -> None:
    x, order = inputs(), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(score(model, x.with_(q=x.q[:, order])), score(model, x)[:, order], **CLOSE)


def test_padding_changes_nothing(model: Dervos) -> None:
    x = inputs()
    padded = x.with_(
        q=F.pad(x.q, (0, 0, 0, 2, 0, 3), value=7.0),
        maps=F.pad(x.maps, (0, 0, 0, 0, 0, 2), value=-5.0),
        vision=F.pad(x.vision, (0, 0, 0, 0, 0, 2), value=6.0),
        words=F.pad(x.words, (0, 0, 0, 4, 0, 2), value=9.0),
        word_mask=F.pad(x.word_mask, (0, 4)),
        motion_words=F.pad(x.motion_words, (0, 4), value=True),
        track_mask=F.pad(x.track_mask, (0, 3)),
        frame_mask=F.pad(x.frame_mask, (0, 2)),
        times=F.pad(x.times, (0, 2), value=-1),
    )
    torch.testing.assert_close(score(model, padded)[:, :4, :3], score(model, x), atol=1e-5, rtol=0)


def test_an_expression_alone_has_its_scores(model: Dervos) -> None:
    x = inputs()
    alone = Inputs(**{k: None if v is None else v[1:] for k, v in x.arguments().items()})
    torch.testing.assert_close(score(model, alone)[0], score(model, x)[1], **CLOSE)


@pytest.mark.parametrize("changed", ["q", "maps", "vision", "words", "motion_words", "times"])
def test_every_input_counts(changed: str) -> None:
    model, x = dervos(), inputs()
    values = {"motion_words": ~x.motion_words, "times": x.times * 3}.get(changed)
    values = getattr(x, changed) + torch.randn(getattr(x, changed).shape[-1]) if values is None else values
    difference = (score(model, x.with_(**{changed: values})) - score(model, x)).abs().amax((1, 2, 3))
    assert (difference > 1e-4).all()


def test_time_is_counted_from_the_first_frame() -> None:
    model, x = dervos(), inputs()
    torch.testing.assert_close(score(model, x.with_(times=x.times + 40)), score(model, x), **CLOSE)


def test_the_order_of_frames_counts_in_the_selector_alone() -> None:
    x = inputs()
    reverse = x.with_(q=x.q.flip(2), maps=x.maps.flip(1), vision=x.vision.flip(1), words=x.words.flip(1))
    guided, unguided = dervos(), dervos(mgis=False)
    torch.testing.assert_close(score(unguided, reverse).flip(2), score(unguided, x), **CLOSE)
    assert (score(guided, reverse).flip(2) - score(guided, x)).abs().max() > 1e-3


def test_scores_in_the_clip_scope_read_other_frames() -> None:
    x = inputs()
    maps = x.maps.clone()
    maps[:, 2] += 1.0
    for scope, expected in (("frame", False), ("clip", True)):
        model = dervos(mgis=False, cfma_scope=scope)
        changed = (score(model, x.with_(maps=maps)) - score(model, x))[:, :, 0].abs().max() > 1e-5
        assert changed == expected


@pytest.mark.parametrize("length", [1, 5, 43])
@pytest.mark.parametrize("t", [1, 3])
@pytest.mark.parametrize("n", [0, 1])
def test_degenerate_sizes(model: Dervos, n: int, t: int, length: int) -> None:
    x = inputs(n=n, t=t, length=length)
    for given in (x, x.with_(motion_words=torch.zeros_like(x.motion_words)), x.with_(word_mask=torch.zeros_like(x.word_mask))):
        assert score(model, given).isfinite().all()
    no_track = x.with_(track_mask=torch.zeros_like(x.track_mask))
    assert score(model, no_track).isfinite().all()


def test_an_expression_without_verbs_has_its_sentence_as_memory() -> None:
    """Without motion words SemDecoder reads the sentence alone, whose words still count."""
    model, x = dervos(), inputs()
    x = x.with_(motion_words=torch.zeros_like(x.motion_words))
    others = x.with_(is_word=torch.tensor([[True, False, True, True, True]]).expand(2, -1))
    assert (score(model, others) - score(model, x)).abs().max() > 1e-5
    specials = x.with_(is_word=torch.zeros_like(x.word_mask))
    torch.testing.assert_close(score(model, specials), score(model, x), **CLOSE)


def test_without_tracks_the_scores_have_a_gradient() -> None:
    model = dervos()
    model.score(**inputs(n=0).arguments()).sum().backward()
    assert model.tais.head[1].weight.grad is not None


def test_maps_that_are_no_square() -> None:
    x = inputs()
    with pytest.raises(ValueError, match="maps of 8 cells"):
        score(dervos(understanding="words"), x.with_(maps=x.maps[:, :, :8], vision=None))


def test_missing_patches() -> None:
    with pytest.raises(ValueError, match="one of them is None"):
        score(dervos(), inputs().with_(vision=None))


@pytest.mark.parametrize(("frames", "clips"), [(1, 1), (8, 1), (9, 2), (16, 2), (79, 10), (17, 3)])
def test_dilated_clips(frames: int, clips: int) -> None:
    chosen = dilated(frames, 8)
    assert len(chosen) == clips and sorted(t for clip in chosen for t in clip) == list(range(frames))
    for i, clip in enumerate(chosen):
        assert len(clip) <= 8 and list(clip) == list(range(i, frames, clips))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tais": "direct", "cfma_scope": "clip"}, "tais=direct reads no maps"),
        ({"width": 20}, "multiple of 8"),
        ({"match_cost": "dense"}, "soft"),
    ],
)
def test_wrong_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(DervosConfig, values, "selector dervos")


def test_settings_of_the_plan() -> None:
    c = DervosConfig()
    assert (c.width, c.hidden, c.sem_layers, c.cfma_layers, c.mgis_layers, c.motion_queries) == (256, 2048, 3, 3, 3, 10)
    assert (c.match_cost, c.match, c.cost_class, c.cost_bce, c.cost_dice, c.class_weight) == ("soft", "hungarian", 2, 5, 5, 2)
    assert (c.no_object_weight, c.least_iou, c.duplicate_iou, c.pairs_per_pass, c.store_bytes) == (0.1, 0, 1, 64, 0)
    assert (Dervos.threshold, Dervos.top1_of_one, Dervos(DervosConfig(**{"width": 8})).empty) == (0.5, True, "top1")
    assert (TOKENS, WORDS, MAPS) == (12, 10, 6)
