"""Boxes of GroundingDINO against the plain model of transformers, on a tiny random checkpoint."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_grounding_dino import LONGEST, tiny_grounding_dino
from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

from rvos_cache.errors import InputError
from rvos_cache.pretrained import weights_digest
from rvos_cache.trackers.grounding_dino import Boxes, BoxFinder

TEXTS = ("a dog.", "the red square that is moving left, and then right, and the bird.", "x.", "a bird? the blue dog. is left.")
BOX, TEXT = 0.2, 0.25


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_grounding_dino(tmp_path_factory.mktemp("grounding-dino"))


@pytest.fixture(scope="module")
def finder(checkpoint: Path) -> BoxFinder:
    return BoxFinder(str(checkpoint), BOX, TEXT)


@pytest.fixture
def own(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to change."""
    return shutil.copytree(checkpoint, tmp_path / "own")


def picture(size: tuple[int, int] = (41, 63), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


@cache
def library(checkpoint: Path) -> tuple[Any, Any]:
    return GroundingDinoProcessor.from_pretrained(checkpoint), GroundingDinoForObjectDetection.from_pretrained(checkpoint).eval()


def plain(checkpoint: Path, frame: np.ndarray, text: str, threshold: float = BOX) -> Boxes:
    """The library's own call for one text, and its post-processing."""
    processor, model = library(checkpoint)
    given = processor(images=frame, text=[text], return_tensors="pt", images_kwargs={"input_data_format": "channels_last"})
    with torch.inference_mode():
        answer = model(**given)
    found = processor.post_process_grounded_object_detection(
        answer, given["input_ids"], threshold, TEXT, target_sizes=[frame.shape[:2]]
    )[0]
    order = np.argsort(-found["scores"].numpy(), kind="stable")
    return found["boxes"].numpy()[order], found["scores"].numpy()[order]


def assert_equal(mine: Boxes, theirs: Boxes, within: float = 1e-5) -> None:
    for one, other in zip(mine, theirs, strict=True):
        assert one.dtype == np.float32 and one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=within)


@pytest.mark.parametrize("size", [(41, 63), (64, 64), (63, 41), (200, 100), (3, 40), (1, 1)])
def test_each_text_gets_what_the_plain_call_says(checkpoint: Path, finder: BoxFinder, size: tuple[int, int]) -> None:
    frame = picture(size)
    found = finder.find(frame, TEXTS)
    for mine, text in zip(found, TEXTS, strict=True):
        assert_equal(mine, plain(checkpoint, frame, text))
    # The texts do ask for different things, or the equality would say nothing of them.
    assert len({scores.tobytes() for _, scores in found}) == len(TEXTS)


@pytest.mark.parametrize("levels", [3, 5])
def test_as_many_levels_as_the_checkpoint_has(tmp_path: Path, levels: int) -> None:
    """The backbone's three maps alone; and two coarser levels, the second made of the first."""
    folder = tiny_grounding_dino(tmp_path, num_feature_levels=levels)
    for mine, text in zip(BoxFinder(str(folder), BOX, TEXT).find(picture(), TEXTS[:2]), TEXTS):
        assert_equal(mine, plain(folder, picture(), text))


def test_the_image_is_read_once_and_each_different_text_once(checkpoint: Path) -> None:
    finder, rows = BoxFinder(str(checkpoint), BOX, TEXT), Counter[str]()
    sight, model = finder.sight, finder.model.model
    watched = {
        "backbone": sight.backbone.conv_encoder.model,
        **{f"projection {level}": module for level, module in enumerate(sight.projections)},
        "text": model.text_backbone,
        "fusion": model.encoder,
        "decoder": model.decoder,
    }
    for name, module in watched.items():

        def count(module: Any, given: Any, answer: Any, name: str = name) -> None:
            whole = answer[0][-1] if name == "backbone" else answer if torch.is_tensor(answer) else answer[0]
            rows[name] += len(whole)

        module.register_forward_hook(count)
    finder.find(picture(), [*TEXTS, "A DOG", "a dog."])
    once = {name: 1 for name in watched if name == "backbone" or name.startswith("projection")}
    assert rows == {**once, "text": 4, "fusion": 4, "decoder": 4} and len(once) == 5


def test_an_answer_depends_on_neither_order_nor_neighbours(finder: BoxFinder) -> None:
    frame = picture()
    together = finder.find(frame, TEXTS)
    backwards = finder.find(frame, TEXTS[::-1])[::-1]
    for text, first, second in zip(TEXTS, together, backwards):
        assert_equal(first, second, 0)
        assert_equal(first, finder.find(frame, [text])[0], 0)


def test_a_frame_is_not_answered_from_the_one_before(checkpoint: Path, finder: BoxFinder) -> None:
    first, second = picture(seed=1), picture((50, 40), seed=2)
    for frame in (first, second, first):
        assert_equal(finder.find(frame, TEXTS[:1])[0], plain(checkpoint, frame, TEXTS[0]))


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("The Red Square", "the red square."),
        ("  a dog. ", "a dog."),
        ("A bird? The dog", "a bird? the dog."),
        ("собака ИДЁТ", "собака идёт."),
    ],
)
def test_texts_are_lower_case_and_end_in_a_point(finder: BoxFinder, text: str, asked: str) -> None:
    assert finder.as_asked(text) == asked
    assert_equal(finder.find(picture(), [text])[0], finder.find(picture(), [asked])[0], 0)


def test_a_text_that_is_too_long_ends_in_a_point_where_the_model_ends(checkpoint: Path, finder: BoxFinder) -> None:
    """The library's call fails on such a text; cut by its tokenizer, it would have no point, and so no phrase."""
    room = LONGEST - 3
    words = ["the", "red", "dog", "abc"] * 20  # "abc" is three tokens: a, ##b, ##c
    with pytest.warns(UserWarning, match=f"cut to {LONGEST} tokens: 'the red dog abc"):
        found = finder.find(picture(), [" ".join(words)])[0]
    cut = " ".join(["the", "red", "dog", "abc"] * (room // 6)) + " the red dog ab."
    assert room % 6 == 5 and len(finder.tokenizer(cut)["input_ids"]) == LONGEST
    assert_equal(found, plain(checkpoint, picture(), cut))


@pytest.mark.parametrize("point", ["", "."])
def test_a_text_that_just_fits_is_whole(checkpoint: Path, finder: BoxFinder, point: str) -> None:
    text = " ".join(["dog"] * (LONGEST - 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = finder.find(picture(), [text + point])[0]
    assert_equal(found, plain(checkpoint, picture(), text + "."))


def test_scores_fall_and_pass_the_threshold(checkpoint: Path, finder: BoxFinder) -> None:
    boxes, scores = finder.find(picture(), TEXTS[:1])[0]
    assert (np.diff(scores) <= 0).all() and scores.min() > BOX and 0 < len(scores) < 20
    higher = float(scores[3])
    few = BoxFinder(str(checkpoint), higher, TEXT).find(picture(), TEXTS[:1])[0]
    assert_equal(few, (boxes[:3], scores[:3]), 0)


def test_the_threshold_of_words_drops_no_box(checkpoint: Path, finder: BoxFinder) -> None:
    assert_equal(BoxFinder(str(checkpoint), BOX, 1.0).find(picture(), TEXTS[:1])[0], finder.find(picture(), TEXTS[:1])[0], 0)


def test_nothing_found_and_nothing_asked(checkpoint: Path) -> None:
    strict = BoxFinder(str(checkpoint), 1.0, TEXT)
    assert strict.find(picture(), []) == []
    for boxes, scores in strict.find(picture(), TEXTS):
        assert (boxes.shape, scores.shape) == ((0, 4), (0,))
        assert boxes.dtype == scores.dtype == np.float32


def test_the_callers_precision_does_not_reach_the_boxes(finder: BoxFinder) -> None:
    apart = finder.find(picture(), TEXTS[:1])[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(finder.find(picture(), TEXTS[:1])[0], apart, 0)


def test_boxes_are_corners_in_pixels_of_the_frame(checkpoint: Path, finder: BoxFinder) -> None:
    """By hand, from what the model says: centre and sides as shares of width and height."""
    processor, model = library(checkpoint)
    with torch.inference_mode():
        answer = model(**processor(images=picture((40, 60)), text=[TEXTS[0]], return_tensors="pt"))
    score, best = answer.logits[0].sigmoid().max(-1).values.max(0)
    x, y, w, h = answer.pred_boxes[0, best].tolist()
    corners = [60 * (x - w / 2), 40 * (y - h / 2), 60 * (x + w / 2), 40 * (y + h / 2)]
    boxes, scores = finder.find(picture((40, 60)), TEXTS[:1])[0]
    assert boxes[0].tolist() == pytest.approx(corners, abs=1e-4) and scores[0] == pytest.approx(float(score), abs=1e-6)


@pytest.mark.parametrize("size", [(1, 500), (2, 40)])
def test_a_frame_that_is_too_narrow_is_one_line(tmp_path: Path, size: tuple[int, int]) -> None:
    finder = BoxFinder(str(tiny_grounding_dino(tmp_path, num_queries=30)), BOX, TEXT)
    with pytest.raises(InputError, match=f"a frame of {size[0]}x{size[1]} pixels is too narrow"):
        finder.find(picture(size), TEXTS)


def test_the_digest_is_that_of_the_weights_as_loaded(checkpoint: Path, finder: BoxFinder, tmp_path: Path) -> None:
    model = GroundingDinoForObjectDetection.from_pretrained(checkpoint)
    assert finder.weight_hashes() == weights_digest(model, str(checkpoint))
    other = BoxFinder(str(tiny_grounding_dino(tmp_path, seed=1)), BOX, TEXT).weight_hashes()
    assert len(other) == 1 and not set(other.values()) & set(finder.weight_hashes().values())


def test_the_layout_of_the_hub_is_read(own: Path, finder: BoxFinder) -> None:
    """IDEA-Research's folders describe the image processor in a file of its own."""
    described = json.loads((own / "processor_config.json").read_text())["image_processor"]
    (own / "processor_config.json").unlink()
    (own / "preprocessor_config.json").write_text(json.dumps(described))
    assert_equal(BoxFinder(str(own), BOX, TEXT).find(picture(), TEXTS[:1])[0], finder.find(picture(), TEXTS[:1])[0], 0)


@pytest.mark.parametrize("lost", ["processor_config.json", "config.json", "model.safetensors"])
def test_a_checkpoint_in_part_is_one_line(own: Path, lost: str) -> None:
    path = own / lost
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"grounding checkpoint .* loaded .* --set grounding_checkpoint=FOLDER$") as caught:
        BoxFinder(str(own), BOX, TEXT)
    assert "\n" not in str(caught.value)


def test_a_folder_without_its_vocabulary_is_refused(own: Path) -> None:
    """The library makes a tokenizer of nothing there, to which every word is unknown."""
    (own / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"wants \[101, 102, 1012, 1029\]; give a folder with tokenizer\.json"):
        BoxFinder(str(own), BOX, TEXT)


def test_the_norm_that_detection_does_not_read_may_be_missing(own: Path, finder: BoxFinder) -> None:
    """The library lets a checkpoint lack the last norm of its Swin, which no feature map passes."""
    path = own / "model.safetensors"
    held = load_file(path)
    kept = {name: tensor for name, tensor in held.items() if ".swin.layernorm." not in name}
    assert len(held) - len(kept) == 2
    save_file(kept, path, {"format": "pt"})
    lacking = [BoxFinder(str(own), BOX, TEXT) for _ in range(2)]
    assert lacking[0].weight_hashes() == lacking[1].weight_hashes()
    assert_equal(lacking[0].find(picture(), TEXTS[:1])[0], finder.find(picture(), TEXTS[:1])[0], 0)


def test_a_weight_that_is_missing_is_not_random(own: Path) -> None:
    path = own / "model.safetensors"
    held = load_file(path)
    del held["model.encoder.layers.1.fusion_layer.vision_param"]
    save_file(held, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"no weight 'model\.encoder\.layers\.1\.fusion_layer\.vision_param'"):
        BoxFinder(str(own), BOX, TEXT)
