"""DMVS against an implementation of one expression at a time with loops, and against its own definitions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_dmvs import SMALL, VITA, WORDS, batch, dmvs, rows, single, with_head
from tiny_vita import CHANNELS, SIZES
from torch import Tensor
from torch.nn import functional as F
from transformers import RobertaConfig, RobertaModel

from rvos_cache.errors import InputError
from rvos_cache.settings import build
from rvos_cache.trackers.vita.head import WINDOW
from rvos_select.data.batch import Batch
from rvos_select.selectors.dmvs import Dmvs
from rvos_select.selectors.dmvs.config import DmvsConfig
from rvos_select.selectors.dmvs.vita import HEAD_NAME, video_queries

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
CONFIGS: list[dict[str, Any]] = [
    {},
    {"init": "random", "mee": False},
    {"mee": False},
    {"mee_static": False, "mee_motion": False},
    {"mee_motion": False, "mee_form": "literal"},
    {"init": "text", "cues": "dshmp"},
    {"position": "query", "sentence": "mean_shared", "append_sentence": False},
    {"position": "none", "motion_queries": 20, "video_attention": True},
    {"sentence": "roberta_pooler", "cues": "dmvs_particles"},
    {"masks": "frozen"},
]
NAMES = [",".join(f"{k}={v}" for k, v in c.items()) or "paper" for c in CONFIGS]


@pytest.fixture(params=CONFIGS, ids=NAMES)
def model(request: pytest.FixtureRequest) -> Dmvs:
    return dmvs(**request.param)


def norm(s: dict[str, Tensor], name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return x * s[f"{name}.weight"] + s[f"{name}.bias"]


def attend(s: dict[str, Tensor], name: str, x: Tensor, memory: Tensor, position: Tensor | None = None) -> Tensor:
    """One block: x (Q, C), memory (K, C), position (Q, C) for self-attention."""
    d, heads = x.shape[1], 8
    query, key = (x, memory) if position is None else (x + position, memory + position)
    weights, biases = s[f"{name}.attention.in_proj_weight"].chunk(3), s[f"{name}.attention.in_proj_bias"].chunk(3)
    q, k, v = (y @ w.T + b for y, w, b in zip((query, key, memory), weights, biases))
    out = []
    for h in range(heads):
        at = slice(h * d // heads, (h + 1) * d // heads)
        out.append((q[:, at] @ k[:, at].T / math.sqrt(d // heads)).softmax(-1) @ v[:, at])
    read = torch.cat(out, -1) @ s[f"{name}.attention.out_proj.weight"].T + s[f"{name}.attention.out_proj.bias"]
    return norm(s, f"{name}.norm", x + read)


def literal(x: Tensor, memory: Tensor) -> Tensor:
    """Eqs. 1 to 4 as printed."""
    return x + (x @ memory.T / math.sqrt(x.shape[1])).softmax(-1) @ memory


def project(s: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return norm(s, f"{name}.1", x @ s[f"{name}.0.weight"].T + s[f"{name}.0.bias"], 1e-12)


def reference(model: Dmvs, x: Batch) -> list[Tensor]:
    """The motion queries (Q, C) after each layer, of a batch of one expression without padding."""
    s, c = model.state_dict(), model.config
    words, is_word = x.words[0], x.spans[0, :, 1] > x.spans[0, :, 0]
    mean = words[is_word].mean(0) if is_word.any() else words.mean(0)
    if c.sentence == "roberta_pooler":
        mean = (words[0] @ s["pooler.weight"].T + s["pooler.bias"]).tanh()
    f_w = project(s, "word_projection", words)
    f_se = project(s, "word_projection" if c.sentence == "mean_shared" else "sentence_projection", mean[None])
    q_f = x.frames["q_f"][0][:].flatten(0, 1)
    if c.masks == "frozen":
        q_v, scores = x.features["q_v"][0], x.features["logits"][0].softmax(-1)[:, :-1].max(-1).values
        pool = x.features["query"][0].long()
    else:
        outputs = VITA(x.frames["q_f"][0][:][None])
        q_v, scores = outputs.q_v[0], outputs.logits[0].softmax(-1)[:, :-1].max(-1).values
        pool = torch.arange(len(q_v))
    f_me = f_se
    if c.mee:
        motion = x.motion_words[0] & is_word
        static = is_word & ~motion if c.cues == "dshmp" else x.static_words[0] & is_word
        if c.cues == "dmvs_particles":
            attached = x.particle_words[0] & is_word
            static, motion = static & ~attached, motion | attached
        see_f, see_v = q_f, q_v
        for part, chosen in (("static", static), ("motion", motion)):
            cues = torch.cat([f_w[chosen], f_se]) if c.append_sentence else f_w[chosen]
            if getattr(c, f"mee_{part}") and len(cues):
                old = see_f if part == "static" else see_v
                new = literal(old, cues) if c.mee_form == "literal" else attend(s, f"encoder.{part}", old, cues)
                see_f, see_v = (new, see_v) if part == "static" else (see_f, new)
        for part, memory in (("frames", see_f), ("videos", see_v)):
            f_me = literal(f_me, memory) if c.mee_form == "literal" else attend(s, f"encoder.{part}", f_me, memory)
    best = sorted(pool.tolist(), key=lambda q: -scores[q].item())[: c.motion_queries]
    starts = {"video": q_v[best], "text": f_se.repeat(c.motion_queries, 1), "random": s.get("motion_query.weight")}
    q = starts[c.init]
    position = {"rank": s.get("position.weight"), "query": VITA.query_embed.weight[best], "none": None}[c.position]
    position = None if position is None else position[: len(q)]
    layers = []
    for i in range(c.layers):
        q = attend(s, f"decoder.{i}.sentence", attend(s, f"decoder.{i}.words", q, f_w), f_me)
        if f"decoder.{i}.videos.norm.weight" in s:
            q = attend(s, f"decoder.{i}.videos", q, q_v)
        q = attend(s, f"decoder.{i}.others", q, q, position)
        hidden = F.relu(q @ s[f"decoder.{i}.feed.linear1.weight"].T + s[f"decoder.{i}.feed.linear1.bias"])
        q = norm(
            s,
            f"decoder.{i}.feed.norm",
            q + hidden @ s[f"decoder.{i}.feed.linear2.weight"].T + s[f"decoder.{i}.feed.linear2.bias"],
        )
        layers.append(norm(s, "decoder_norm", q))
    return layers


def test_equals_the_plain_implementation(model: Dmvs) -> None:
    x = batch()
    decoded = model.decode(x)
    with torch.no_grad():
        for b in range(3):
            for ours, plain in zip(decoded.layers[:, b], reference(model, single(x, b))):
                torch.testing.assert_close(ours, plain, **CLOSE)


def test_the_paper_settings_have_its_size() -> None:
    """Acceptance test 4. The paper says 12.7 M (Table 8); the frozen head is neither counted nor saved."""
    model = Dmvs(DmvsConfig())
    assert sum(p.numel() for p in model.parameters()) == 12_707_586
    bound = dmvs()
    before = sum(p.numel() for p in bound.parameters())
    del bound.frozen[HEAD_NAME]
    assert sum(p.numel() for p in bound.parameters()) == before == sum(v.numel() for v in dmvs().state_dict().values())


@pytest.mark.parametrize(
    ("values", "more"),
    [
        ({"mee_form": "literal"}, -4 * 263_680),
        ({"mee": False}, -4 * 263_680),
        ({"mee_static": False}, -263_680),
        ({"init": "text"}, 6 * 263_680),
        ({"init": "random"}, 6 * 263_680 + 20 * 256),
        ({"init": "random", "video_attention": False}, 20 * 256),
        ({"motion_queries": 100}, 80 * 256),
        ({"position": "query"}, -20 * 256),
        ({"sentence": "mean_shared"}, -197_376),
        ({"sentence": "roberta_pooler"}, 0),
        ({"masks": "frozen"}, -197_376),
        ({"hidden": 1024}, -6 * 1024 * 513),
    ],
)
def test_every_row_of_the_tables_is_a_setting(values: dict[str, Any], more: int) -> None:
    """Sizes of the parts as the design's section 1.3 counts them."""
    with torch.device("meta"):
        model = Dmvs(build(DmvsConfig, values, "settings"))
    assert sum(p.numel() for p in model.parameters()) == 12_707_586 + more


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"masks": "frozen", "init": "random"}, "masks=frozen"),
        ({"init": "text", "position": "none"}, "position"),
        ({"match": "iou_multi"}, "masks=frozen"),
        ({"match_scope": "video"}, "masks=frozen"),
        ({"init": "random", "position": "query"}, "position"),
        ({"mee": False, "mee_static": False}, "mee_static"),
        ({"width": 100}, "multiple of 8"),
        ({"n_m": 3}, "no setting 'n_m'.*motion_queries"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as fault:
        build(DmvsConfig, values, "settings")
    assert "\n" not in str(fault.value)


def test_padding_changes_nothing(model: Dmvs) -> None:
    """Of T, N, L and B: the first expression is long in all three, the others are cut."""
    x = batch(4, t=8, length=6)
    x.frame_mask[1, 5:] = x.word_mask[2, 3:] = x.track_mask[3, 4:] = False
    x.frame_mask[2, 1:] = False
    x.words[2, 3:] = 40.0
    for arrays in x.frames.values():
        arrays[1][5:], arrays[2][1:] = 9.0, -9.0
    logits = model(x)
    for b in range(4):
        one = model(single(x, b))[0]
        torch.testing.assert_close(logits[b, x.track_mask[b]] if not model.draws else logits[b], one, **CLOSE)


def test_the_least_there_is(model: Dmvs) -> None:
    """One frame, one track, one object, and of the text the special word alone."""
    x = batch(2, t=1, length=1, tracks=1, objects=1)
    for b, ours in enumerate(model.decode(x).layers.movedim(1, 0)):
        torch.testing.assert_close(ours, torch.stack(reference(model, single(x, b))), **CLOSE)
    assert model.loss(x)["loss"].isfinite()


def test_more_objects_than_queries(model: Dmvs) -> None:
    """Every query is matched, the other objects to none."""
    x = batch(1, objects=30, tracks=6)
    positive = torch.stack([-model.class_head(layer).log_softmax(-1)[..., 0].mean() for layer in model.decode(x).layers])
    torch.testing.assert_close(model.loss(x)["class"], positive.sum(), **CLOSE)


def test_the_order_of_expressions_is_theirs(model: Dmvs) -> None:
    x, order = batch(4), [2, 0, 3, 1]
    torch.testing.assert_close(model(rows(x, order)), model(x)[order], **CLOSE)
    if not model.draws:
        torch.testing.assert_close(model.loss(rows(x, order)), model.loss(x), **CLOSE)


def test_expressions_of_a_video_together_equal_one_by_one(model: Dmvs) -> None:
    x = batch(4, shared=True)
    x.word_mask[1, 3:] = False
    x.track_mask[2, 1] = False
    for b in range(4):
        one = model(single(x, b))[0]
        torch.testing.assert_close(model(x)[b, x.track_mask[b]] if not model.draws else model(x)[b], one, **CLOSE)


def test_a_long_video_s_expressions_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = dmvs(), batch(5, shared=True)
    whole = model(x)
    monkeypatch.setattr("rvos_select.selectors.dmvs.layers.LARGEST", 2 * 7 * SIZES.frame_queries)
    with torch.no_grad():
        torch.testing.assert_close(model(x), whole, **CLOSE)


def test_one_key_leaves_its_queries_no_gradient() -> None:
    """Acceptance test 5: the softmax over F_me alone is 1 whatever the query; so the paper has it."""
    model = dmvs()
    x = batch()
    torch.manual_seed(0)
    model.loss(x)["loss"].backward()
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        assert grad is not None, name
        if ".sentence.attention.in_proj" in name:
            query, key, value = grad.chunk(3)
            assert query.abs().max() < 1e-6 * value.abs().max() and key.abs().max() < 1e-6 * value.abs().max(), name
        else:
            assert grad.abs().sum() > 0, name


@pytest.mark.parametrize("masks", ["drawn", "frozen"])
def test_a_video_played_backward_has_the_same_scores(masks: str) -> None:
    """Frame queries know one frame each and nothing orders them, so where whole windows fill the video no score tells left from
    right: the paper has no code of time."""
    model, x = dmvs(masks=masks), batch(t=4 * WINDOW)
    backward = replace(x, frames={name: tuple(a.flip(0) for a in arrays) for name, arrays in x.frames.items()})
    torch.testing.assert_close(model(backward), model(x), **CLOSE)
    shuffled = torch.randperm(4 * WINDOW, generator=torch.Generator().manual_seed(0))
    other = replace(x, frames={name: tuple(a[shuffled] for a in arrays) for name, arrays in x.frames.items()})
    if masks == "drawn":
        assert (model(other) - model(x)).abs().max() > 1e-3


def test_scores_are_the_softmax_s() -> None:
    model, x = dmvs(), batch()
    layers = model.decode(x).layers
    torch.testing.assert_close(model(x).sigmoid(), model.class_head(layers[-1]).softmax(-1)[..., 0])


def test_no_word_of_a_kind_and_no_word_at_all(model: Dmvs) -> None:
    x = batch()
    x.motion_words[0] = x.static_words[0] = False
    assert x.spans is not None
    x.spans[1] = 0
    decoded = model.decode(x)
    torch.testing.assert_close(decoded.layers[:, 0], torch.stack(reference(model, single(x, 0))), **CLOSE)
    torch.testing.assert_close(decoded.layers[:, 1], torch.stack(reference(model, single(x, 1))), **CLOSE)
    losses = model.loss(x)
    assert all(v.isfinite() for v in losses.values())


def test_the_pooler_is_roberta_s_with_frozen_weights(tmp_path: Path) -> None:
    """Of transformers' own, whose weights a checkpoint without a pooler leaves as they were drawn; they are saved with DMVS."""
    roberta = RobertaModel(RobertaConfig(hidden_size=WORDS, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8))
    model, x = dmvs(sentence="roberta_pooler"), batch()
    assert model.pooler.weight.std() == pytest.approx(roberta.pooler.dense.weight.std().item(), rel=0.15)
    assert not list(model.pooler.parameters())
    model.pooler.weight.copy_(roberta.pooler.dense.weight.detach())
    torch.testing.assert_close(model.pooler(x.words), roberta.pooler(x.words))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(Dmvs.from_pretrained(tmp_path).pooler.weight, model.pooler.weight)
    shifted = replace(x, spans=x.spans + torch.tensor([0, 1]))
    with pytest.raises(InputError, match="the token before the first word, .* extract-text with --encoder roberta") as fault:
        model(shifted)
    assert "\n" not in str(fault.value)


def test_words_beyond_the_longest_are_cut_with_their_tags() -> None:
    model, x = dmvs(max_length=3), batch(length=6)
    short = replace(
        x, **{name: getattr(x, name)[:, :3] for name in ("words", "word_mask", "spans", "static_words", "motion_words")}
    )
    torch.testing.assert_close(model(x), dmvs()(short))


def test_a_hidden_answer_has_no_loss(model: Dmvs) -> None:
    with pytest.raises(ValueError, match="hides"):
        model.loss(replace(batch(), truth=None, overlap=None))


def test_bfloat16_autocast_stays_near(model: Dmvs) -> None:
    x = batch()
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, losses = model(x), model.loss(x)
    exact = model(x)
    kept = exact.isfinite()
    assert logits.dtype == losses["loss"].dtype == torch.float32
    assert (logits - exact)[kept].norm() < 0.05 * exact[kept].norm() + 0.05


def test_saves_and_reads_back_without_the_frozen_head(model: Dmvs, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = Dmvs.from_pretrained(tmp_path)
    if model.draws:
        with_head(again)
    assert again.config == model.config and not again.training
    torch.testing.assert_close(again(batch()), model(batch()), atol=0, rtol=0)


def test_unbound_it_says_so() -> None:
    model = Dmvs(DmvsConfig(**SMALL))
    with pytest.raises(ValueError, match="bind"):
        model(batch())


def test_the_frozen_head_sees_each_clip_alone() -> None:
    """Acceptance test 1, small: clips of different lengths in one batch against the head on one clip at a time."""
    q_f = torch.randn(3, 9, SIZES.frame_queries, CHANNELS, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([9, 4, 0])[:, None]
    q_v, scores = video_queries(VITA, q_f, mask)
    for i, t in enumerate((9, 4)):
        alone = VITA(q_f[i : i + 1, :t])
        torch.testing.assert_close(q_v[i], alone.q_v[0], **CLOSE)
        torch.testing.assert_close(scores[i], alone.scores()[0], **CLOSE)
    assert q_v[2].abs().sum() == 0
