"""BEiT-3 gives the outputs of torchscale's (tests/cache/golden_beit3.py); what must not matter changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from golden_beit3 import TOLERANCE, error, golden, recorded_tensors
from tiny_beit3 import GRID, LAYERS, LONGEST, MASK_TOKEN, VOCABULARY, WIDTH, official_tensors, shapes, write_tiny_beit3
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.errors import InputError
from rvos_cache.text.beit3 import Beit3, Beit3Output, Beit3Sizes, digest, load, normalise_pixels

SIDE = 16 * GRID


@pytest.fixture(scope="module")
def tiny() -> Beit3:
    return Beit3.from_official(official_tensors())


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def pairs(count: int = 2, length: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Images, ids and `real` of pairs; the last sentence ends in two tokens of padding."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, SIDE, SIDE, generator=generator) * 2 - 1
    ids = torch.randint(4, VOCABULARY, (count, length), generator=generator)
    real = torch.ones(count, length, dtype=torch.bool)
    ids[-1, -2:], real[-1, -2:] = 1, False
    return images, ids, real


def largest(one: Beit3Output, two: Beit3Output) -> float:
    """The largest difference of vision, class token and words."""
    assert one.vision is not None and two.vision is not None and one.cls is not None and two.cls is not None
    return max(float((a - b).abs().max()) for a, b in zip(one, two) if a is not None and b is not None)


def check_recorded(size: str, sides: tuple[int, ...]) -> None:
    weights = recorded_tensors(size)
    ids, real = golden()[f"input.{size}.ids"], golden()[f"input.{size}.real"]
    for side in sides:
        if f"input.images_{side}" not in golden():
            continue
        model = Beit3.from_official(weights, side)
        images = normalise_pixels(golden()[f"input.images_{side}"].permute(0, 2, 3, 1))
        output = model(images, ids[: len(images)], real[: len(images)])
        for part in output._fields:
            assert error(f"output.{size}.side{side}.{part}", getattr(output, part)) < TOLERANCE, (side, part)
    output = model(None, ids, real)
    assert output.vision is None and output.cls is None
    assert error(f"output.{size}.words_alone", output.words) < TOLERANCE


def test_the_small_size_is_that_of_torchscale() -> None:
    """Also with positions resampled from 14 x 14 to 4 x 4."""
    assert "input.images_64" in golden() and "input.images_224" in golden()
    check_recorded("small", (64, 224))


@pytest.mark.slow
def test_the_base_size_is_that_of_torchscale() -> None:
    """Also with positions resampled from 14 x 14 to 20 x 20, where the whole recording is there."""
    assert "input.images_224" in golden()
    check_recorded("base", (224, 320))


def test_sizes_are_read_from_the_tensors() -> None:
    """And the released sizes have the published names of DeRVOS's plan: 220,987,392 and 672,702,464 parameters."""
    assert Beit3.from_official(official_tensors()).sizes == Beit3Sizes(WIDTH, LAYERS, VOCABULARY, GRID, LONGEST)
    for width, layers, count in ((768, 12, 220_987_392), (1024, 24, 672_702_464)):
        released = shapes(width, layers, 64010, grid=14, longest=1022)
        with torch.device("meta"):
            model = Beit3(Beit3Sizes.of({name.removeprefix("beit3."): shape for name, shape in released.items()}))
        assert sum(p.numel() for p in model.parameters()) + width == count  # width: the mask token


def test_released_tensors_survive_the_way_there_and_back() -> None:
    tensors = official_tensors()
    back = Beit3.from_official(tensors).official()
    assert tensors.keys() - back.keys() == {MASK_TOKEN}
    assert all(torch.equal(back[name], tensors[name]) for name in back)


def test_padding_changes_nothing(tiny: Beit3) -> None:
    images, ids, real = pairs()
    whole = tiny(images, ids, real)
    longer = tiny(images, F.pad(ids, (0, 5), value=9), F.pad(real, (0, 5)))
    assert largest(whole, longer._replace(words=longer.words[:, :7])) < 1e-5
    assert (longer.words[:, 7:] == 0).all() and (whole.words[-1, -2:] == 0).all()
    other = ids.clone()
    other[~real] = 17
    assert largest(whole, tiny(images, other, real)) == 0
    alone = tiny(None, ids, real).words
    assert (alone[-1:, :5] - tiny(None, ids[-1:, :5], real[-1:, :5]).words).abs().max() < 1e-5


def test_real_decides_what_is_read(tiny: Beit3) -> None:
    images, ids, real = pairs()
    assert largest(tiny(images, ids, real), tiny(images, ids, torch.ones_like(real))) > 0.05


def test_pairs_do_not_influence_each_other(tiny: Beit3) -> None:
    images, ids, real = pairs(3)
    batch = tiny(images, ids, real)
    for i in range(3):
        single = tiny(images[i : i + 1], ids[i : i + 1], real[i : i + 1])
        assert largest(Beit3Output(*(part[i : i + 1] for part in batch)), single) < 1e-5


def test_vision_depends_on_the_sentence_and_words_on_the_frame(tiny: Beit3) -> None:
    images, ids, real = pairs()
    whole, other = tiny(images, ids, real), ids.clone()
    other[:, 2] += 1
    assert (whole.vision - tiny(images, other, real).vision).abs().amax((1, 2)).min() > 1e-3
    assert (whole.words - tiny(images.flip(0), ids, real).words)[real].abs().max() > 1e-3
    assert (whole.words - tiny(None, ids, real).words)[real].abs().max() > 1e-3


def test_the_side_is_any_multiple_of_16(tiny: Beit3) -> None:
    _, ids, real = pairs()
    for side in (16, 80, 96):
        model = Beit3.from_official(official_tensors(), side)
        output = model(torch.zeros(2, 3, side, side), ids, real)
        assert output.vision.shape == (2, (side // 16) ** 2, WIDTH) and output.cls.shape == (2, WIDTH)
        # Words alone read no position of a patch, and the weights are the same.
        assert torch.equal(model(None, ids, real).words, tiny(None, ids, real).words)
        assert digest(model) == digest(tiny)
    for side in (0, 100):
        with pytest.raises(InputError, match=f"a multiple of 16 pixels, got {side}"):
            Beit3.from_official(official_tensors(), side)


def test_frames_and_words_of_other_shapes_are_refused(tiny: Beit3) -> None:
    images, ids, real = pairs()
    with pytest.raises(ValueError, match=r"images \(2, 3, 48, 64\), expected \(B, 3, 64, 64\)"):
        tiny(images[:, :, 16:], ids, real)
    with pytest.raises(ValueError, match="at most 62 words"):
        tiny(None, ids.repeat(1, 9), real.repeat(1, 9))
    with pytest.raises(ValueError, match=r"real \(2, 6\)"):
        tiny(None, ids, real[:, 1:])


def test_bfloat16_is_near_float32(tiny: Beit3) -> None:
    """By autocast, which leaves outputs in float32, and with all weights in bfloat16."""
    images, ids, real = pairs()
    exact = tiny(images, ids, real)
    with torch.autocast("cpu", torch.bfloat16):
        near = tiny(images, ids, real)
    halved = Beit3.from_official(official_tensors()).to(torch.bfloat16)(images, ids, real)
    for part in exact._fields:
        a, b, c = (getattr(x, part).float() for x in (exact, near, halved))
        assert getattr(near, part).dtype == torch.float32 and getattr(halved, part).dtype == torch.bfloat16
        assert 1e-4 < (a - b).norm() / a.norm() < 0.02 and (a - c).norm() / a.norm() < 0.04, part


def test_it_can_be_trained_from_random_weights() -> None:
    """Every tensor but the unread rows has a gradient, the resampled positions too."""
    with torch.enable_grad():
        model = Beit3(Beit3Sizes(WIDTH, LAYERS, VOCABULARY, GRID, LONGEST), side=96)
        _, ids, real = pairs()
        output = model(torch.randn(2, 3, 96, 96), ids, real)
        # Not the plain sum, which a norm's output does not change.
        sum(part.square().mul(torch.randn_like(part)).sum() for part in output).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert all((model.positions[e].grad[:2] == 0).all() for e in "AB")
    assert Beit3.from_official(model.official(), 96).sizes == model.sizes


def test_pixels_become_images() -> None:
    """The extremes are -1 and 1; the leading axes become one."""
    pixels = torch.zeros(2, 3, 16, 16, 3, dtype=torch.uint8)
    pixels[1, 2, 4, 5] = torch.tensor([255, 51, 0], dtype=torch.uint8)
    images = normalise_pixels(pixels)
    assert images.shape == (6, 3, 16, 16) and images.dtype == torch.float32
    assert images[5, :, 4, 5].tolist() == pytest.approx([1.0, -0.6, -1.0]) and (images[:5] == -1).all()
    assert torch.equal(normalise_pixels(pixels[1, 2], "cpu"), images[5:])


@pytest.mark.usefixtures("on_cpu")
def test_the_loaded_folder_is_frozen_and_has_one_digest_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_beit3(tmp_path / "weights" / "TINY")
    model = load(str(folder), 96)
    assert model.side == 96 and not model.training and not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, official_tensors()[name]) for name, tensor in model.official().items())
    monkeypatch.setenv("RVOS_CHECKPOINTS", str(folder.parent))
    assert digest(load("elsewhere/TINY")) == digest(model)
    changed = official_tensors()
    changed["beit3.encoder.layer_norm.B.bias"][3] += 1e-3
    assert digest(Beit3.from_official(changed)) != digest(model)
