"""ReferDINO's pruned decoder: equal to transformers' own without pruning, and its scores in hand-computed cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_grounding_dino import tiny_grounding_dino
from torch import Tensor, nn

from rvos_cache.trackers.referdino import PrunedLayer, prune_decoder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any], Any]:
    """A random model of four decoder layers, what its decoder is called with (two padded images and texts), and its outputs."""
    from transformers import GroundingDinoForObjectDetection

    folder = tiny_grounding_dino(tmp_path_factory.mktemp("referdino") / "grounding", decoder_layers=4)
    model = GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((2, 3, 64, 96), generator=generator)
    pixel_mask = torch.ones((2, 64, 96), dtype=torch.long)
    pixel_mask[1, 48:] = pixel_mask[1, :, 64:] = 0
    ids = torch.tensor([[101, 5, 6, 1012, 102], [101, 7, 102, 0, 0]])
    calls: list[dict[str, Any]] = []
    model.model.decoder.register_forward_pre_hook(lambda _, __, kwargs: calls.append(kwargs), with_kwargs=True)
    with torch.no_grad():
        outputs = model(images, ids, attention_mask=(ids > 0).long(), pixel_mask=pixel_mask)
    call = calls[0]
    inputs = {
        "hidden": call["inputs_embeds"],
        "memory": call["vision_encoder_hidden_states"],
        "real": call["vision_encoder_attention_mask"],
        "reference": call["reference_points"],
        "shapes": call["spatial_shapes_list"],
        "valid_ratios": call["valid_ratios"],
        "text": call["text_encoder_hidden_states"],
        "text_mask": ~call["text_encoder_attention_mask"],
    }
    return model.model.decoder, inputs, outputs


def in_first_order(layer: PrunedLayer, values: Tensor) -> Tensor:
    """`values` (B, Q, C) of an unpruned layer in the order of the first queries."""
    return values.take_along_dim(layer.index.argsort(1)[..., None], 1)


@pytest.mark.parametrize("score", ["code_gate", "paper_eq4", "random"])
@torch.no_grad()
def test_without_pruning_the_decoder_is_transformers_own(tiny: Any, score: Any) -> None:
    decoder, inputs, outputs = tiny
    assert not bool(inputs["real"].all()) and not bool(inputs["text_mask"].all())
    layers = prune_decoder(decoder, **inputs, keep=1, score=score, eps=1e-5)
    # transformers lists the references after each layer's refinement.
    references = [inputs["reference"], *outputs.intermediate_reference_points.unbind(1)]
    for i, layer in enumerate(layers):
        assert (in_first_order(layer, layer.hs) - outputs.intermediate_hidden_states[:, i]).abs().max() < 1e-5
        assert (in_first_order(layer, layer.reference) - references[i]).abs().max() < 1e-5
    assert not torch.equal(layers[-1].index[0], torch.arange(20))


@torch.no_grad()
def test_elements_of_a_batch_and_pads_do_not_matter(tiny: Any) -> None:
    decoder, inputs, _ = tiny
    both = prune_decoder(decoder, **inputs)
    one = {name: value if name == "shapes" else value[1:] for name, value in inputs.items()}
    # The second text has three tokens; the image is padded.
    one["text"], one["text_mask"] = one["text"][:, :3], one["text_mask"][:, :3]
    one["memory"] = one["memory"].masked_fill(~one["real"][..., None], 100.0)
    for layer, alone in zip(both, prune_decoder(decoder, **one)):
        assert torch.equal(layer.index[1:], alone.index)
        assert (layer.hs[1:] - alone.hs).abs().max() < 1e-5
        assert (layer.reference[1:] - alone.reference).abs().max() < 1e-5


@torch.no_grad()
def test_random_scores_depend_on_the_seed_alone(tiny: Any) -> None:
    decoder, inputs, _ = tiny
    first, again, other = (prune_decoder(decoder, **inputs, score="random", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a.index, b.index) and torch.equal(a.index[0], a.index[1]) for a, b in zip(first, again))
    assert not torch.equal(first[0].index, other[0].index)


def test_gradients_reach_queries_and_not_references(tiny: Any) -> None:
    decoder, inputs, _ = tiny
    layers = prune_decoder(decoder, **{**inputs, "hidden": inputs["hidden"].clone().requires_grad_()})
    assert all(layer.hs.requires_grad and not layer.reference.requires_grad for layer in layers)


Attention = Callable[[Tensor], tuple[Tensor, Tensor]]


def stub(attention: Attention, layers: int = 1) -> Any:
    """A decoder whose layers return their input, and the attention weights (B, heads, Q, Q), (B, heads, Q, L) given for it."""

    def layer(hidden: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
        return hidden, *attention(hidden)

    def offsets(hidden: Tensor) -> Tensor:
        return torch.zeros(*hidden.shape[:2], 4)

    return SimpleNamespace(
        layers=[layer] * layers, bbox_embed=[offsets] * layers, reference_points_head=lambda x: x, layer_norm=nn.Identity()
    )


def uniform(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Equal weights to all queries and to two words."""
    batch, number = hidden.shape[:2]
    return torch.full((batch, 2, number, number), 1 / number), torch.full((batch, 2, number, 2), 0.5)


def run(decoder: Any, hidden: Tensor, text: Tensor, text_mask: Tensor, **options: Any) -> list[PrunedLayer]:
    """`prune_decoder` of a stub on an image of one cell."""
    batch, number, _ = hidden.shape
    return prune_decoder(
        decoder,
        hidden=hidden,
        memory=torch.zeros(batch, 1, 4),
        real=torch.ones(batch, 1, dtype=torch.bool),
        reference=torch.full((batch, number, 4), 0.5),
        shapes=[(1, 1)],
        valid_ratios=torch.ones(batch, 1, 2),
        text=text,
        text_mask=text_mask,
        **options,
    )


@pytest.mark.parametrize(
    ("keep", "sizes"),
    [
        (0.5, [450, 225, 113, 57, 29, 15]),
        (0.8, [720, 576, 461, 369, 296, 237]),
        (0.35, [315, 111, 39, 14, 5, 2]),
        (1.0, [900] * 6),
    ],
)
def test_each_layer_keeps_its_share_rounded_up(keep: float, sizes: list[int]) -> None:
    hidden = torch.randn((1, 900, 4), generator=torch.Generator().manual_seed(0))
    layers = run(stub(uniform, 6), hidden, torch.ones(1, 2, 4), torch.ones(1, 2, dtype=torch.bool), keep=keep)
    assert [layer.hs.shape[1] for layer in layers] == sizes
    for layer in layers:
        # Places are those of the first queries, through all layers.
        assert torch.equal(layer.hs[0], hidden[0, layer.index[0]])


QUERIES = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0], [2, 0, 0, 0]]])
WORDS = torch.tensor([[[1.0, 0, 0, 0], [0, 1.5, 0, 0], [0, 9, 0, 0]]])
"""The third word is a pad."""
WORD_MASK = torch.tensor([[True, True, False]])
TO_QUERIES = torch.tensor([[0.9, 0.0, 0.1], [0.3, 0.2, 0.5], [0.6, 0.4, 0.0]])
TO_TEXT = torch.tensor([[0.1, 0.3, 0.6], [0.3, 0.1, 0.9], [0.22, 0.1, 0.1]])


def fixed(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Two heads whose means are TO_QUERIES and TO_TEXT."""
    swing = torch.tensor([0.5, 1.5])[None, :, None, None]
    return TO_QUERIES * swing, TO_TEXT * swing


def test_the_scores_of_a_case_computed_by_hand() -> None:
    # Received from others: 0.3 + 0.6, 0.0 + 0.4, 0.1 + 0.5. Best class logits of real words: 1, 1.5, 2.
    received, logits = [0.9, 0.4, 0.6], [1.0, 1.5, 2.0]
    received_sum, logits_sum = (sum(math.exp(x) for x in values) for values in (received, logits))
    gate = [math.exp(r) / received_sum / 2 + math.exp(x) / logits_sum / 2 for r, x in zip(received, logits)]
    # Half of what others give, plus the largest weight of a real word. A third instead of half, or pads, give another order.
    paper = [0.9 / 2 + 0.3, 0.4 / 2 + 0.3, 0.6 / 2 + 0.22]
    for score, values in (("code_gate", gate), ("paper_eq4", paper)):
        order = sorted(range(3), key=lambda i: -values[i])
        layer = run(stub(fixed), QUERIES, WORDS, WORD_MASK, keep=1, score=score)[0]
        assert layer.index.tolist() == [order], score
    assert sorted(range(3), key=lambda i: -gate[i]) == [2, 0, 1]
    assert sorted(range(3), key=lambda i: -paper[i]) == [0, 2, 1]


def test_equal_scores_keep_the_order_of_the_queries() -> None:
    layer = run(stub(uniform), torch.ones(1, 900, 4), torch.ones(1, 2, 4), torch.ones(1, 2, dtype=torch.bool))[0]
    assert layer.index.tolist() == [list(range(450))]


def test_of_a_text_of_pads_alone_the_other_queries_decide() -> None:
    layer = run(stub(fixed), QUERIES, WORDS, torch.zeros_like(WORD_MASK), keep=1)[0]
    assert layer.index.tolist() == [[0, 2, 1]]


@pytest.mark.parametrize(
    ("changed", "order"),
    [
        # Each puts another query first or last if its term is left out.
        ({"own": 5.0}, [2, 0, 1]),
        ({"pad": 50.0}, [2, 0, 1]),
    ],
)
def test_own_weights_and_pads_do_not_count(changed: dict[str, float], order: list[int]) -> None:
    words = WORDS.clone()
    words[0, 2, 1] = changed.get("pad", 9.0)

    def attention(hidden: Tensor) -> tuple[Tensor, Tensor]:
        to_queries, to_text = fixed(hidden)
        to_queries[..., 1, 1] = changed.get("own", 0.2)
        to_text[..., 1, 2] = changed.get("pad", 0.6)
        return to_queries, to_text

    assert run(stub(attention), QUERIES, words, WORD_MASK, keep=1)[0].index.tolist() == [order]
    paper = run(stub(attention), QUERIES, words, WORD_MASK, keep=1, score="paper_eq4")[0]
    assert paper.index.tolist() == [[0, 2, 1]]


@pytest.mark.parametrize("score", ["code_gate", "paper_eq4", "random"])
@pytest.mark.parametrize(("number", "kept"), [(1, 1), (2, 1)])
def test_few_queries_and_a_text_of_pads_alone(score: Any, number: int, kept: int) -> None:
    hidden = QUERIES[:, :number]
    layers = run(stub(uniform, 2), hidden, WORDS[:, :2], torch.zeros(1, 2, dtype=torch.bool), keep=0.35, score=score)
    assert [layer.hs.shape[1] for layer in layers] == [kept, 1]
    assert all(bool(layer.hs.isfinite().all()) and bool(layer.reference.isfinite().all()) for layer in layers)


def test_a_query_that_is_not_a_number_comes_last() -> None:
    hidden = QUERIES.clone()

    def attention(x: Tensor) -> tuple[Tensor, Tensor]:
        to_queries, to_text = fixed(x)
        to_text[..., 0, :] = torch.nan
        return to_queries, to_text

    layer = run(stub(attention), hidden, WORDS, WORD_MASK, keep=1, score="paper_eq4")[0]
    assert layer.index.tolist() == [[2, 1, 0]]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="keep must be in"):
        run(stub(uniform), QUERIES, WORDS, WORD_MASK, keep=0)
    with pytest.raises(ValueError, match="score must be code_gate"):
        run(stub(uniform), QUERIES, WORDS, WORD_MASK, score="best")
    decoder = stub(uniform)
    decoder.bbox_embed = None
    with pytest.raises(ValueError, match="no bbox_embed"):
        run(decoder, QUERIES, WORDS, WORD_MASK)


def test_the_limit_of_the_inverse_sigmoid_matters_at_the_border(tiny: Any) -> None:
    decoder, inputs, _ = tiny
    border = inputs["reference"].clone()
    border[:, :, 2:] = 0.0
    wide, narrow = (
        prune_decoder(decoder, **{**inputs, "reference": border}, keep=1, eps=eps)[1].reference for eps in (1e-3, 1e-5)
    )
    assert float((wide - narrow).abs().max()) > 1e-4
