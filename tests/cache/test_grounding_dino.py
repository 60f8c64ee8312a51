"""Boxes of GroundingDINO against transformers' own call, on a tiny random checkpoint."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_grounding_dino import MAX_LENGTH, tiny_grounding_dino
from tiny_sam2 import without_gpu
from transformers import AutoTokenizer, GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil, GroundingDinoProcessor

from rvos_cache.errors import InputError
from rvos_cache.pretrained import weights_digest
from rvos_cache.trackers.grounding_dino import Boxes, BoxFinder

TEXTS = ("a dog.", "the red square that is moving left, and then right, and the bird.", "x.", "a bird? the blue dog. is left.")
BOX, TEXT = 0.2, 0.25
TOLERANCE = 1e-5
"""Of scores, and of boxes relative to the frame. The float32 model lies within 2e-6 of float64, and kernels differ between
machines."""


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """Some boxes are compared to the last bit, and transformers' call runs on the CPU."""
    with without_gpu():
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_grounding_dino(tmp_path_factory.mktemp("grounding-dino"))


@pytest.fixture(scope="module")
def finder(checkpoint: Path) -> BoxFinder:
    return BoxFinder(str(checkpoint), BOX, TEXT)


@pytest.fixture
def own(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, for tests that change it."""
    return shutil.copytree(checkpoint, tmp_path / "own")


def picture(size: tuple[int, int] = (41, 63), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


@cache
def library(checkpoint: Path) -> tuple[Any, Any]:
    # Where torchvision is installed, the processor's own from_pretrained gives one that resizes with it, to other pixels.
    images = GroundingDinoImageProcessorPil.from_pretrained(checkpoint)
    processor = GroundingDinoProcessor(images, AutoTokenizer.from_pretrained(checkpoint))
    return processor, GroundingDinoForObjectDetection.from_pretrained(checkpoint).eval()


def plain(checkpoint: Path, frame: np.ndarray, text: str, threshold: float = BOX) -> Boxes:
    """transformers' own call for one text, and its post-processing."""
    processor, model = library(checkpoint)
    inputs = processor(images=frame, text=[text], return_tensors="pt", images_kwargs={"input_data_format": "channels_last"})
    with torch.inference_mode():
        outputs = model(**inputs)
    result = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold, TEXT, target_sizes=[frame.shape[:2]]
    )[0]
    order = np.argsort(-result["scores"].numpy(), kind="stable")
    return result["boxes"].numpy()[order], result["scores"].numpy()[order]


def assert_equal(ours: Boxes, expected: Boxes, tolerance: float = TOLERANCE) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == np.float32 and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max(initial=0)))


@pytest.mark.parametrize("size", [(41, 63), (64, 64), (63, 41), (200, 100), (3, 40), (1, 1)])
def test_each_text_has_the_boxes_of_the_plain_call(checkpoint: Path, finder: BoxFinder, size: tuple[int, int]) -> None:
    frame = picture(size)
    results = finder.find(frame, TEXTS)
    for boxes, text in zip(results, TEXTS, strict=True):
        assert_equal(boxes, plain(checkpoint, frame, text))
    # If the texts did not change the scores, the equality would not show that each has its own.
    assert len({scores.tobytes() for _, scores in results}) == len(TEXTS)


@pytest.mark.parametrize("levels", [3, 5])
def test_as_many_levels_as_the_checkpoint_has(tmp_path: Path, levels: int) -> None:
    """The backbone's three maps alone; and two coarser levels, the second made of the first."""
    folder = tiny_grounding_dino(tmp_path, num_feature_levels=levels)
    for boxes, text in zip(BoxFinder(str(folder), BOX, TEXT).find(picture(), TEXTS[:2]), TEXTS):
        assert_equal(boxes, plain(folder, picture(), text))


def test_the_image_is_encoded_once_and_each_different_text_once(checkpoint: Path) -> None:
    finder, rows = BoxFinder(str(checkpoint), BOX, TEXT), Counter[str]()
    shared, model = finder.backbone, finder.model.model
    modules = {
        "backbone": shared.backbone.conv_encoder.model,
        **{f"projection {level}": module for level, module in enumerate(shared.projections)},
        "text": model.text_backbone,
        "fusion": model.encoder,
        "decoder": model.decoder,
    }
    for name, module in modules.items():

        def count(module: Any, inputs: Any, output: Any, name: str = name) -> None:
            first = output[0][-1] if name == "backbone" else output if torch.is_tensor(output) else output[0]
            rows[name] += len(first)

        module.register_forward_hook(count)
    finder.find(picture(), [*TEXTS, "A DOG", "a dog."])
    once = {name: 1 for name in modules if name == "backbone" or name.startswith("projection")}
    assert rows == {**once, "text": 4, "fusion": 4, "decoder": 4} and len(once) == 5


def test_boxes_depend_on_neither_the_order_nor_the_other_texts(finder: BoxFinder) -> None:
    frame = picture()
    together = finder.find(frame, TEXTS)
    backwards = finder.find(frame, TEXTS[::-1])[::-1]
    for text, first, second in zip(TEXTS, together, backwards):
        assert_equal(first, second, 0)
        assert_equal(first, finder.find(frame, [text])[0], 0)


def test_boxes_do_not_depend_on_the_frame_before(checkpoint: Path, finder: BoxFinder) -> None:
    first, second = picture(seed=1), picture((50, 40), seed=2)
    for frame in (first, second, first):
        assert_equal(finder.find(frame, TEXTS[:1])[0], plain(checkpoint, frame, TEXTS[0]))


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("The Red Square", "the red square."),
        ("  a dog. ", "a dog."),
        ("A bird? The dog", "a bird? the dog."),
        ("собака ИДЁТ", "собака идёт."),
    ],
)
def test_texts_are_lower_case_and_end_in_a_full_stop(finder: BoxFinder, text: str, caption: str) -> None:
    assert finder.caption(text) == caption
    assert_equal(finder.find(picture(), [text])[0], finder.find(picture(), [caption])[0], 0)


def test_a_text_that_is_too_long_is_cut_before_its_full_stop(checkpoint: Path, finder: BoxFinder) -> None:
    """transformers' call fails on such a text; cut by its tokenizer it would have no full stop, and so no phrase."""
    room = MAX_LENGTH - 3
    words = ["the", "red", "dog", "abc"] * 20  # "abc" is three tokens: a, ##b, ##c
    with pytest.warns(UserWarning, match=f"cut to {MAX_LENGTH} tokens: 'the red dog abc"):
        boxes = finder.find(picture(), [" ".join(words)])[0]
    cut = " ".join(["the", "red", "dog", "abc"] * (room // 6)) + " the red dog ab."
    assert room % 6 == 5 and len(finder.tokenizer(cut)["input_ids"]) == MAX_LENGTH
    assert_equal(boxes, plain(checkpoint, picture(), cut))


@pytest.mark.parametrize("stop", ["", "."])
def test_a_text_that_just_fits_is_not_cut(checkpoint: Path, finder: BoxFinder, stop: str) -> None:
    text = " ".join(["dog"] * (MAX_LENGTH - 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        boxes = finder.find(picture(), [text + stop])[0]
    assert_equal(boxes, plain(checkpoint, picture(), text + "."))


def test_scores_are_sorted_and_above_the_threshold(checkpoint: Path, finder: BoxFinder) -> None:
    boxes, scores = finder.find(picture(), TEXTS[:1])[0]
    assert (np.diff(scores) <= 0).all() and scores.min() > BOX and len(scores) > 3
    count = next(k for k in range(1, len(scores)) if scores[k - 1] - scores[k] > 1e-4)
    higher = float(scores[count - 1] + scores[count]) / 2
    few = BoxFinder(str(checkpoint), higher, TEXT).find(picture(), TEXTS[:1])[0]
    assert_equal(few, (boxes[:count], scores[:count]), 0)


def test_the_text_threshold_drops_no_box(checkpoint: Path, finder: BoxFinder) -> None:
    assert_equal(BoxFinder(str(checkpoint), BOX, 1.0).find(picture(), TEXTS[:1])[0], finder.find(picture(), TEXTS[:1])[0], 0)


def test_no_boxes_and_no_texts(checkpoint: Path) -> None:
    strict = BoxFinder(str(checkpoint), 1.0, TEXT)
    assert strict.find(picture(), []) == []
    for boxes, scores in strict.find(picture(), TEXTS):
        assert (boxes.shape, scores.shape) == ((0, 4), (0,))
        assert boxes.dtype == scores.dtype == np.float32


def test_the_caller_s_autocast_does_not_change_the_boxes(finder: BoxFinder) -> None:
    expected = finder.find(picture(), TEXTS[:1])[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(finder.find(picture(), TEXTS[:1])[0], expected, 0)


def test_boxes_are_corners_in_pixels_of_the_frame(checkpoint: Path, finder: BoxFinder) -> None:
    """Computed here from the model's output, centre and sides as shares of width and height."""
    processor, model = library(checkpoint)
    with torch.inference_mode():
        outputs = model(**processor(images=picture((40, 60)), text=[TEXTS[0]], return_tensors="pt"))
    score, best = outputs.logits[0].sigmoid().max(-1).values.max(0)
    x, y, w, h = outputs.pred_boxes[0, best].tolist()
    corners = np.array([[60 * (x - w / 2), 40 * (y - h / 2), 60 * (x + w / 2), 40 * (y + h / 2)]], np.float32)
    boxes, scores = finder.find(picture((40, 60)), TEXTS[:1])[0]
    assert_equal((boxes[:1], scores[:1]), (corners, np.array([float(score)], np.float32)))


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


def test_the_hub_s_layout_of_a_folder_is_read(own: Path, finder: BoxFinder) -> None:
    """IDEA-Research's folders have the image processor in a file of its own."""
    processor = json.loads((own / "processor_config.json").read_text())["image_processor"]
    (own / "processor_config.json").unlink()
    (own / "preprocessor_config.json").write_text(json.dumps(processor))
    assert_equal(BoxFinder(str(own), BOX, TEXT).find(picture(), TEXTS[:1])[0], finder.find(picture(), TEXTS[:1])[0], 0)


@pytest.mark.parametrize("broken", ["processor_config.json", "config.json", "model.safetensors"])
def test_a_broken_checkpoint_is_one_line(own: Path, broken: str) -> None:
    path = own / broken
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"grounding checkpoint .* loaded .* --set grounding_checkpoint=FOLDER$") as error:
        BoxFinder(str(own), BOX, TEXT)
    assert "\n" not in str(error.value)


def test_a_folder_without_its_vocabulary_is_refused(own: Path) -> None:
    """transformers makes a tokenizer there to which every word is unknown."""
    (own / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"expects \[101, 102, 1012, 1029\]; give a folder with tokenizer\.json"):
        BoxFinder(str(own), BOX, TEXT)


def test_the_norm_that_detection_does_not_use_may_be_missing(own: Path, finder: BoxFinder) -> None:
    """transformers accepts checkpoints without the last norm of Swin, through which no feature map passes."""
    path = own / "model.safetensors"
    tensors = load_file(path)
    rest = {name: tensor for name, tensor in tensors.items() if ".swin.layernorm." not in name}
    assert len(tensors) - len(rest) == 2
    save_file(rest, path, {"format": "pt"})
    lacking = [BoxFinder(str(own), BOX, TEXT) for _ in range(2)]
    assert lacking[0].weight_hashes() == lacking[1].weight_hashes()
    assert_equal(lacking[0].find(picture(), TEXTS[:1])[0], finder.find(picture(), TEXTS[:1])[0], 0)


def test_a_weight_that_is_missing_is_not_random(own: Path) -> None:
    path = own / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.encoder.layers.1.fusion_layer.vision_param"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"no weight 'model\.encoder\.layers\.1\.fusion_layer\.vision_param'"):
        BoxFinder(str(own), BOX, TEXT)
