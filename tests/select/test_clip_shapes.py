"""The small CLIP of moving shapes: its language, its loss, and that its folder is that of `rvos-cache convert-clip`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipelines import clip_shapes as page
from pipelines.shapes_words import Claim, Description, caption, describe, make_tokenizer, phrases
from rvos_cache.clip.pooling import pool
from rvos_cache.clip.towers import HEAD_FILE, encode_texts, load_image_head, load_image_tower, load_text_tower, load_tokenizer
from rvos_cache.errors import InputError
from rvos_cache.shapes.language import NUMBERS
from rvos_cache.shapes.scene import COLOURS, SHAPES
from rvos_cache.tensors import read_tensors

CIRCLE = Description("red", "circle", "small")


def test_every_word_of_the_language_is_one_token_and_two_builds_are_equal() -> None:
    tokenizer = make_tokenizer()
    texts = [*phrases(), *NUMBERS, *(f"the {c} {s}" for c in COLOURS for s in SHAPES), "all red crosses", "everything"]
    for text in texts:
        words = text.replace(",", " ,").replace("-", " - ").split()
        assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])[1:-1] == [f"{word}</w>" for word in words]
    assert make_tokenizer().get_vocab() == tokenizer.get_vocab()
    # As in CLIP: the end has the largest number, and the number that pads is a letter's.
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == tokenizer.bos_token_id + 1
    assert tokenizer.convert_ids_to_tokens(0) == "!"
    # Words of no sentence are written in letters, and none is lost.
    assert "".join(tokenizer.convert_ids_to_tokens(tokenizer("zebra")["input_ids"])[1:-1]) == "zebra</w>"


@pytest.mark.parametrize(
    ("attributes", "truth"),
    [
        (("red", "circle", ""), 1),
        (("", "circle", "small"), 1),
        (("red", "", "big"), 0),
        (("blue", "", "small"), 0),
        (("", "star", ""), 0),
    ],
)
def test_a_claim_is_true_of_what_it_says(attributes: tuple[str, str, str], truth: int) -> None:
    assert Claim("", *attributes).truth(CIRCLE) == truth
    # Of an object of a middle size, what says a size is undecided, unless the rest is false already.
    middle = Description("red", "circle", "")
    assert Claim("", *attributes).truth(middle) == (truth if not attributes[2] else -1 if attributes[0] in ("", "red") else 0)


def test_what_is_said_of_an_object_is_true_of_it_and_names_no_motion() -> None:
    rng = np.random.default_rng(0)
    star = Description("red", "star", "small")  # "circle" is a word of motion too
    claims = [describe(rng, star) for _ in range(300)]
    assert all(claim.truth(star) == 1 for claim in claims)
    spoken = {word for claim in claims for word in claim.text.split()}
    moving = {word for phrase in phrases() for word in phrase.split()} - {"the", "a", "one", "object"}
    assert {"red", "star", "stars", "small", "one", "all"} <= spoken
    assert not spoken & moving
    assert caption(rng, [CIRCLE] * 3) == "a red circle, a red circle and a red circle"
    assert caption(rng, [CIRCLE]) == "a red circle"


def test_the_contrastive_loss_is_clip_s_where_each_sentence_is_true_of_one() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert torch.allclose(page.contrastive(logits, torch.eye(5, dtype=torch.long)), expected)


def test_the_contrastive_loss_of_several_true_sentences_by_hand() -> None:
    """Two objects, two sentences; the first sentence is true of both objects, the second is undecided of the second object."""
    logits = torch.tensor([[1.0, 2.0], [0.5, 9.0]])
    first = -(torch.log_softmax(logits[0], 0).sum() / 2 + 0.0) / 2  # rows; the second row has one candidate left
    columns = -(torch.log_softmax(logits[:, 0], 0).sum() / 2 + 0.0) / 2
    assert torch.allclose(page.contrastive(logits, torch.tensor([[1, 1], [1, -1]])), (first + columns) / 2)


def test_objects_are_pooled_as_the_tracks_of_a_cache() -> None:
    model = page.ShapesClip(make_tokenizer()).eval()
    frames = page.frames_of(5, 0, 1)[:2]
    with torch.no_grad():
        pooled, whole = page.objects_of(model, frames)
        maps = model.maps(torch.stack([page.GEOMETRY.image(frame.image) for frame in frames]))
    expected = [
        pool([stage[b] for stage in maps], page.STRIDES, page.GEOMETRY, torch.from_numpy(frame.masks))
        for b, frame in enumerate(frames)
    ]
    assert torch.allclose(torch.cat(pooled, 1), torch.cat(expected), atol=1e-5)
    assert torch.allclose(whole, maps[-1].flatten(2).mean(2), atol=1e-5)
    # Twice the frames' size, so that the last stage has about one cell for each object.
    assert maps[-1].shape[2:] == (6, 10)


@pytest.mark.slow
@pytest.mark.usefixtures("on_cpu")
def test_the_folder_is_a_clip_and_an_interrupted_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FRAMES", 2)
    monkeypatch.setattr(page, "SAVED", 2)
    whole = page.train_clip(tmp_path / "whole", 2, 3, 1e-3, 5)
    # Stopped in its third step, after its state was saved.
    steps, loss = [], page._loss

    def stopping(*arguments: object) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return loss(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(page, "_loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        page.train_clip(tmp_path / "parts", 2, 3, 1e-3, 5)
    with pytest.raises(InputError, match="other settings"):
        page.train_clip(tmp_path / "parts", 2, 4, 1e-3, 5)
    parts = page.train_clip(tmp_path / "parts", 2, 3, 1e-3, 5)
    assert len(steps) == 4
    for name in ("image/model.safetensors", "text/model.safetensors", HEAD_FILE):
        ours, again = read_tensors(whole / name, ""), read_tensors(parts / name, "")
        assert ours.keys() == again.keys() and all(torch.equal(ours[key], again[key]) for key in ours), name
    assert page.train_clip(whole, 2, 3, 1e-3, 5) == whole and len(steps) == 4

    image, text, tokenizer = load_image_tower(str(whole)), load_text_tower(str(whole)), load_tokenizer(str(whole))
    assert tuple(image.config.hidden_sizes) == page.WIDTHS and tokenizer.get_vocab() == make_tokenizer().get_vocab()
    words, lengths = encode_texts(text, tokenizer, ["the red circle", "the two blue stars moving upwards"])
    assert words.shape == (2, 77, page.JOINT) and lengths.tolist() == [5, 8]
    # What training reads is what stage one reads.
    model = page.ShapesClip(tokenizer)
    model.text.load_state_dict(text.state_dict())
    tokens, _ = page._tokens(tokenizer, ["the red circle", "the two blue stars moving upwards"])
    assert torch.allclose(model.sentences(tokens), words[torch.arange(2), lengths - 1], atol=1e-5)
    shapes = {name: tuple(value.shape) for name, value in load_image_head(str(whole)).items()}
    width, joint = page.WIDTHS[-1], page.JOINT
    assert shapes == {
        "norm.weight": (width,), "norm.bias": (width,), "fc1.weight": (2 * joint, width), "fc1.bias": (2 * joint,),
        "fc2.weight": (joint, 2 * joint), "logit_scale": (),
    }  # fmt: skip
    correct, count = page.accuracy(whole, 5, 2)
    assert 0 <= correct <= count and count > 10
