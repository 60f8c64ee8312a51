"""The small GroundingDINO of moving shapes: its language, its losses, and that its folder is what `gdino-queries` reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipelines import gdino_shapes as page
from pipelines.clip_shapes import Frame
from pipelines.gdino_losses import WEIGHTS, TokenLogits, detection_losses
from pipelines.referdino_shapes import referdino_shapes
from pipelines.shapes_words import Claim, Description, make_wordpiece
from rvos_cache.errors import InputError
from rvos_cache.shapes import make_video
from rvos_cache.store import read_card
from rvos_cache.tensors import read_tensors
from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings
from rvos_cache.trackers.referdino.start import load_start
from rvos_cache.trackers.referdino.tracker import GdinoQueries
from rvos_cache.trackers.referdino.tune_settings import tune_settings
from rvos_cache.trackers.referdino.upstream import Upstream
from rvos_cache.trackers.referdino_losses import TERMS, Predicted, Truth, focal, losses
from rvos_cache.trackers.sam2.preprocess import normalise
from rvos_cache.types import Expression, Video


def test_every_word_of_the_language_is_one_token() -> None:
    tokenizer = make_wordpiece()
    texts = [sentence.text for index in range(5) for sentence in make_video(3, 0, index)[3]]
    for text in (*texts, *page.PHRASES_OF_MOTION, *page.EVERYTHING):
        words = text.replace(",", " ,").replace("-", " - ").split()
        tokens = tokenizer(f"{text}.")["input_ids"]
        assert tokenizer.convert_ids_to_tokens(tokens) == ["[CLS]", *words, ".", "[SEP]"]
        assert len(tokens) <= page.MAX_LENGTH
    # The numbers of BERT, which GroundingDINO compares.
    assert [tokenizer.convert_tokens_to_ids(token) for token in ("[PAD]", "[CLS]", "[SEP]", ".", "?")] == [
        0,
        101,
        102,
        1012,
        1029,
    ]
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert make_wordpiece().get_vocab() == tokenizer.get_vocab()
    assert "".join(tokenizer.tokenize("zebra")).replace("##", "") == "zebra"


def a_frame() -> Frame:
    """A red circle and a blue star of 16 x 8 pixels."""
    masks = np.zeros((2, page.HEIGHT, page.WIDTH), bool)
    masks[0, 8:24, 40:48] = masks[1, 40:56, 80:88] = True
    things = (Description("red", "circle", "small"), Description("blue", "star", "small"))
    return Frame(np.zeros((page.HEIGHT, page.WIDTH, 3), np.uint8), masks, things)


def test_a_sentence_is_true_of_what_looks_so_whatever_it_says_of_motion() -> None:
    rng = np.random.default_rng(0)
    examples = [page._example(rng, a_frame()) for _ in range(400)]
    kinds = {tuple(one.truth) for one in examples}
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}
    for one in examples:
        phrase = max((p for p in page.PHRASES_OF_MOTION if one.text.endswith(f" {p}")), key=len, default="")
        noun = one.text.removesuffix(f" {phrase}")
        if noun in page.EVERYTHING:
            assert phrase and one.truth.all(), one.text
            continue
        for own, thing in zip(one.truth, a_frame().objects, strict=True):
            says = [word for word in noun.split() if word in page.COLOURS or word.rstrip("es") in page.SHAPES]
            if thing.colour in says or thing.shape in noun:
                assert own or len(says) + any(shape in noun for shape in page.SHAPES) > 1, one.text
            else:
                assert not own, one.text


def one_word(predicted: Predicted) -> TokenLogits:
    """The logits of sentences of one word and nothing else."""
    b = len(predicted.logits)
    words = torch.ones(b, 1, dtype=torch.bool)
    return TokenLogits(predicted.logits[:, 0, :, None, None].expand(-1, -1, b, 1), words, words)


def test_the_losses_of_one_object_are_those_of_referdino() -> None:
    """A frame with one object is a clip of one frame, whose matched query is the same."""
    torch.manual_seed(0)
    example = page.Example(a_frame(), "", Claim("", "red", "", ""))
    targets = page.targets_of(example)
    boxes = torch.rand(1, 1, 5, 4) * 0.5 + 0.2
    boxes[0, 0, 3] = targets.boxes[0] + 0.01
    predicted = Predicted(torch.randn(1, 1, 5), boxes, torch.randn(1, 1, 5, *targets.masks.shape[1:]))
    ours = detection_losses(predicted, one_word(predicted), [targets])
    masks = torch.from_numpy(example.frame.masks[None, :1])
    real = torch.ones(1, page.HEIGHT, page.WIDTH, dtype=torch.bool)
    truth = Truth(targets.boxes[None], torch.ones(1, 1, dtype=torch.bool), masks, real)
    weights = {**dict.fromkeys(TERMS, 0.0), **WEIGHTS, "mask": 0.0}
    library = losses(predicted, truth, costs=weights, weights=weights)
    # The object's edges lie between cells, so that shares of cells and pixels of them agree.
    for name in ("cls", "l1", "giou", "dice"):
        assert torch.allclose(ours[name], library[name], atol=1e-5), name


def test_each_object_that_a_sentence_names_has_a_query_of_its_own() -> None:
    targets = page.targets_of(page.Example(a_frame(), "", Claim("", "", "", "")))
    none = page.targets_of(page.Example(a_frame(), "", Claim("", "green", "", "")))
    logits = torch.full((2, 1, 4), -20.0)
    logits[0, 0, 1] = logits[0, 0, 3] = 20.0
    boxes, masks = torch.full((2, 1, 4, 4), 0.5), torch.full((2, 1, 4, *targets.masks.shape[1:]), -50.0)
    boxes[0, 0, [3, 1]], masks[0, 0, [3, 1]] = targets.boxes, 100 * targets.masks - 50

    def terms(logits: torch.Tensor, first: int = 0) -> dict[str, torch.Tensor]:
        predicted = Predicted(logits[first:], boxes[first:], masks[first:])
        return detection_losses(predicted, one_word(predicted), [targets, none][first:])

    assert all(value < 1e-3 for value in terms(logits).values())
    # One of two objects without a query that says so, or a query that says so without an object.
    for place in ((0, 0, 1), (1, 0, 2)):
        wrong = logits.clone()
        wrong[place] = -wrong[place]
        assert terms(wrong)["cls"] > 1
    assert terms(logits, 1).keys() == {"cls"} and terms(logits, 1)["cls"] < 1e-3


def test_words_are_positives_and_all_other_tokens_negatives() -> None:
    """[CLS] the circle . [SEP] and a token of padding, with logits of 1 of a matched query."""
    head = page.TrainingHead(page.HeadSizes(channels=8, map_channels=8, mask_layers=0))
    text, mask = torch.ones(1, 1, 6, 8), torch.tensor([[[True] * 5 + [False]]])
    logits = head.logits(torch.full((1, 1, 1, 8), 1 / 8), text, mask)
    (tokens,) = head.tokens
    assert tokens.words.tolist() == [[False, True, True, False, False, False]] and tokens.real.tolist() == mask[0].tolist()
    assert torch.allclose(logits, torch.ones(1, 1, 1)) and torch.allclose(tokens.own(), torch.ones(1, 1, 6))
    targets = page.targets_of(page.Example(a_frame(), "", Claim("", "red", "", "")))
    predicted = Predicted(logits, targets.boxes[None, None], torch.zeros(1, 1, *targets.masks.shape))
    one = torch.tensor(1.0)
    expected = (2 * focal(one, one) + 3 * focal(one, one * 0)) / 2
    assert torch.allclose(detection_losses(predicted, tokens, [targets])["cls"], expected)


def test_what_an_object_is_is_told_from_the_cells_under_its_mask() -> None:
    frame = a_frame()
    shares = page.cells_of(frame.masks, 8)
    assert shares.shape == (2, *page.CELLS) and shares.sum((1, 2)).tolist() == [2.0, 2.0]
    assert shares[0, 1:3, 5].tolist() == [1.0, 1.0]
    torch.manual_seed(0)
    tokenizer = make_wordpiece()
    model = page.ShapesGdino(len(tokenizer))
    batch = [page.Example(frame, text, Claim("", "", "circle", "")) for text in ("the red circle", "the circle that grows")]
    layers = model.predict(tokenizer, batch)
    kept = [page.QUERIES, page.kept_queries(page.QUERIES, 1, page.KEEP), page.kept_queries(page.QUERIES, 2, page.KEEP)]
    assert [layer.logits.shape[-1] for layer in layers] == [*kept[1:], kept[0]]
    # Masks of the last layer alone.
    assert [bool(layer.masks.any()) for layer in layers] == [False, True, False]
    expected = sum(np.log(page.COUNTS))
    # Each query with every sentence; its own is what `logits` has.
    for layer, tokens in zip(layers, model.tokens, strict=True):
        assert tokens.means().shape == (2, layer.logits.shape[-1], 2)
        assert torch.equal(tokens.means()[[0, 1], :, [0, 1]], layer.logits[:, 0])
    model.classes.apply(lambda module: [torch.nn.init.zeros_(p) for p in module.parameters(recurse=False)])
    assert torch.allclose(model.class_loss(batch), torch.tensor(expected, dtype=torch.float32))


def test_the_folder_is_a_checkpoint_and_an_interrupted_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "SENTENCES", 2)
    monkeypatch.setattr(page, "SAVED", 2)
    whole = page.train_gdino(tmp_path / "whole", 2, 3, 1e-3, 5)
    # Stopped in its third step, after its state was saved.
    steps, loss = [], page._losses

    def stopping(*arguments: object) -> dict[str, torch.Tensor]:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return loss(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(page, "_losses", stopping)
    with pytest.raises(KeyboardInterrupt):
        page.train_gdino(tmp_path / "parts", 2, 3, 1e-3, 5)
    with pytest.raises(InputError, match="other settings"):
        page.train_gdino(tmp_path / "parts", 2, 4, 1e-3, 5)
    parts = page.train_gdino(tmp_path / "parts", 2, 3, 1e-3, 5)
    assert len(steps) == 4
    for name in ("model.safetensors", "referdino.safetensors"):
        ours, again = read_tensors(whole / name, ""), read_tensors(parts / name, "")
        assert ours.keys() == again.keys() and all(torch.equal(ours[key], again[key]) for key in ours), name
    assert page.train_gdino(whole, 2, 3, 1e-3, 5) == whole and len(steps) == 4


def test_random_weights_to_try_commands_with(tmp_path: Path) -> None:
    """Extraction with the mask decoder, and tuning, take the folder."""
    folder = tmp_path / "tiny"
    result = CliRunner().invoke(page.gdino_shapes, ["--tiny", "--out", str(folder)], catch_exceptions=False)
    assert result.output.endswith(f"checkpoint: {folder}, of random weights\n")
    settings = GdinoQueriesSettings(checkpoint=str(folder), masks="head", short_side=80)
    _, frames, _, sentences = make_video(3, 0, 0)
    video = Video("v", ("0", "1"), frames[0].shape[:2], lambda t: frames[t])
    tracks = GdinoQueries(settings).track(video, [Expression("v", "0", sentences[0].text, None)])
    assert tracks.tokens.shape[1:] == (2, page.CHANNELS) and np.isfinite(tracks.tokens).all()
    assert load_start(tune_settings({"checkpoint": str(folder)})).trained


@pytest.mark.usefixtures("on_cpu")
def test_training_reads_what_stage_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queries, boxes and logits of a sentence in a frame, by the folder's tracker and by the model that wrote the folder."""
    monkeypatch.setattr(page, "SENTENCES", 2)
    models = []
    build = page.ShapesGdino
    monkeypatch.setattr(page, "ShapesGdino", lambda words: models.append(build(words)) or models[-1])
    folder = page.train_gdino(tmp_path / "gdino", 2, 1, 1e-3, 5)
    upstream = Upstream(str(folder), page.KEEP, "code_gate")
    frame, text = page.frames_of(5, 0, 1)[0], "the red circle that grows"
    with torch.no_grad():
        maps = upstream.encode(normalise(torch.from_numpy(frame.image)[None].permute(0, 3, 1, 2)))
        read = upstream.read(maps.levels, upstream.caption(text))
        ours = models[0].eval().predict(make_wordpiece(), [page.Example(frame, text, Claim("", "red", "circle", ""))])[-2]
        assert upstream.head is not None and upstream.queries == ours.logits.shape[-1]
        logits = (read.hs @ read.text.transpose(1, 2)).amax(-1)
        assert torch.allclose(logits, models[0].tokens[-2].own().amax(-1), atol=1e-4)
        assert not torch.allclose(logits, ours.logits[:, 0], atol=1e-2)
        assert torch.allclose(upstream.boxes(read.hs, read.reference), ours.boxes[:, 0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_page_by_what_a_sentence_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "SENTENCES", 2)
    words = ["--videos", "5", "--gdino-videos", "2", "--gdino-steps", "2", "--set", "epochs=1", "--set", "clip.frames=3"]
    monkeypatch.setattr(sys, "argv", ["page", "--out", str(tmp_path / "out"), *words])
    referdino_shapes(standalone_mode=False)
    printed = capsys.readouterr().out
    assert "where looks suffice: " in printed and "% of the oracle" in printed
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    names = {"referdino", "no_enhancer", "mean_cosine", "all_tracks", "oracle"}
    assert metrics.keys() == names | {"kinds", "claims"} and metrics["kinds"].keys() == metrics["claims"].keys() == names
    assert metrics["kinds"]["oracle"]["none"] == 1 and all(0 <= metrics[name]["jf"] <= 1 for name in names)
    card = read_card(tmp_path / "out/cache/valid_u/gdino-queries.zarr")
    assert card.settings["masks"] == "head" and card.settings["keep_ratio"] == page.KEEP
    layers = {
        name: json.loads((tmp_path / f"out/runs/{name}/settings.json").read_text())["resolved"]["config"]["temporal_layers"]
        for name in ("referdino", "no_enhancer")
    }
    assert layers == {"referdino": 3, "no_enhancer": 0}
    assert (tmp_path / "out/report/index.html").is_file()
