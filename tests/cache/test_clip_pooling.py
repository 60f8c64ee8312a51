"""CLIP's features under masks: open_clip's and transformers' own embeddings, and sums over cells and pixels in plain loops."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import PROJECTION, WIDTHS, golden, write_hub_clip, write_tiny_clip

from rvos_cache.clip.image import ConvNextImage, VitImage, head_digest, load_head, load_image
from rvos_cache.clip.pooling import FRAME, POOL, ClipPooling, PoolSettings, box_shares, pool
from rvos_cache.clip.towers import DEVIATION, HEAD_FILE, MEAN, load_tokenizer
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.settings import build
from rvos_cache.types import Video

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_clip(tmp_path_factory.mktemp("convnext") / "clip"))


@pytest.fixture(scope="module")
def vit(convnext: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_hub_clip(tmp_path_factory.mktemp("vit") / "hub", load_tokenizer(convnext)))


def noise(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def video_of(frames: np.ndarray[Any, Any]) -> Video:
    return Video("v", tuple(f"{t:05d}" for t in range(len(frames))), frames.shape[1:3], lambda t: frames[t])


def geometry_of(size: tuple[int, int], short_side: int, divisor: int = 32) -> FrameGeometry:
    return FrameGeometry.of(size, short_side, 1333, mean=MEAN, deviation=DEVIATION, divisor=divisor)


def plain_means(cells: torch.Tensor, stride: int, geometry: FrameGeometry, mask: torch.Tensor) -> torch.Tensor:
    """The mean (C,) of the cells, each weighted by the area in which it and the mask's pixels overlap, cell by cell."""

    def shared(cell: int, pixel: int, axis: int) -> float:
        scale = geometry.resized[axis] / geometry.size[axis]
        return max(0.0, min((cell + 1) * stride, (pixel + 1) * scale) - max(cell * stride, pixel * scale))

    total, weight = torch.zeros(len(cells), dtype=torch.float64), 0.0
    for y, x in mask.nonzero().tolist():
        for i in range(cells.shape[1]):
            for j in range(cells.shape[2]):
                area = shared(i, y, 0) * shared(j, x, 1)
                total, weight = total + area * cells[:, i, j].double(), weight + area
    return (total / weight).float() if weight else total.float()


@pytest.mark.parametrize(("size", "short_side"), [((7, 9), 32), ((20, 13), 20), ((16, 24), 64)])
def test_pooled_features_are_sums_over_cells_and_pixels(size: tuple[int, int], short_side: int) -> None:
    geometry, generator = geometry_of(size, short_side), torch.Generator().manual_seed(1)
    strides = (4, 8, 16, 32)
    maps = [torch.randn(3 + i, *geometry.cells(stride), generator=generator) for i, stride in enumerate(strides)]
    masks = torch.rand(4, *size, generator=generator) > 0.8
    masks[1], masks[2] = False, True
    pooled = pool(maps, strides, geometry, masks)
    expected = torch.stack([torch.cat([plain_means(m, s, geometry, mask) for m, s in zip(maps, strides)]) for mask in masks])
    assert pooled.shape == (4, 3 + 4 + 5 + 6) and torch.allclose(pooled, expected, atol=1e-5)
    assert (pooled[1] == 0).all() and (pooled[[0, 2, 3]] != 0).all()


def test_a_mask_of_one_pixel_takes_its_cell_at_every_stride() -> None:
    """A thousandth of a cell of the coarsest map, and no centre of any cell, is still its mean."""
    geometry = geometry_of((1024, 1536), 64)
    strides = (4, 8, 16, 32)
    maps = [torch.arange(float(h * w)).reshape(1, h, w) for h, w in map(geometry.cells, strides)]
    masks = torch.zeros(1, 1024, 1536, dtype=torch.bool)
    masks[0, 1023, 700] = True
    y, x = 63, 700 * 96 // 1536
    expected = [float((y // s) * m.shape[2] + x // s) for m, s in zip(maps, strides)]
    assert pool(maps, strides, geometry, masks)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_padding_is_no_part_of_a_frame() -> None:
    geometry = geometry_of((10, 12), 40)
    assert (geometry.resized, geometry.padded) == ((40, 48), (64, 64))
    cells = torch.full((1, *geometry.cells(8)), 1e6)
    cells[:, :5, :6] = torch.arange(30.0).reshape(5, 6)
    whole = pool([cells], (8,), geometry, torch.ones(1, 10, 12, dtype=torch.bool))
    assert whole.item() == pytest.approx(14.5)


def test_the_head_of_the_mean_of_a_frame_is_open_clips_image_feature(convnext: str) -> None:
    """Recorded from open_clip: the maps of the stages, and `encode_image`."""
    tower, images = ConvNextImage(convnext), golden()["input.images"]
    assert (tower.widths, tower.strides) == (WIDTHS, (4, 8, 16, 32))
    maps = tower.maps(images)
    for i, cells in enumerate(maps):
        assert torch.allclose(cells, golden()[f"output.stage{i}"], atol=1e-4)
    geometry = geometry_of((64, 96), 64)
    whole = torch.ones(1, 64, 96, dtype=torch.bool)
    pooled = torch.cat([pool([m[t] for m in maps], tower.strides, geometry, whole) for t in range(2)])
    assert pooled.shape == (2, sum(WIDTHS))
    assert torch.allclose(load_head(convnext)(pooled), golden()["output.image_features"], atol=1e-4)


def test_the_head_of_a_clip_model_is_transformers_own(vit: str) -> None:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(vit).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        hidden = model.vision_model(pixel_values=images).last_hidden_state
        expected = model.get_image_features(pixel_values=images)
    expected = getattr(expected, "pooler_output", expected)
    head = load_head(vit)
    assert torch.allclose(head(hidden[:, 0]), expected, atol=1e-6)
    assert head.logit_scale.item() == pytest.approx(model.logit_scale.item())
    assert torch.allclose(VitImage(vit).maps(images)[0].flatten(2), hidden[:, 1:].transpose(1, 2), atol=1e-6)


def test_patches_of_a_wide_frame_have_interpolated_positions(vit: str) -> None:
    from transformers import CLIPModel

    tower = VitImage(vit)
    geometry = tower.geometry((20, 50), 24, 1333)
    assert geometry.resized == geometry.padded == (24, 64)  # 60 is rounded to whole patches of 8
    images = geometry.image(noise(20, 50, 3))[None]
    with torch.no_grad():
        hidden = CLIPModel.from_pretrained(vit).eval().vision_model(images, interpolate_pos_encoding=True).last_hidden_state
    (cells,) = tower.maps(images)
    assert cells.shape == (1, 24, 3, 8) and torch.allclose(cells[0, :, 2, 5], hidden[0, 1 + 2 * 8 + 5], atol=1e-6)


@pytest.mark.parametrize("own", [True, False])
def test_a_square_frame_is_prepared_as_transformers_does(vit: str, tmp_path: Path, own: bool) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path / "clip"
    shutil.copytree(vit, folder)
    options = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], "resample": 2} if own else {}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, **options)
    if own:
        (folder / "preprocessor_config.json").write_text(json.dumps(options))
    frame = noise(50, 50, 3)
    expected = torch.tensor(np.asarray(processor(Image.fromarray(frame))["pixel_values"][0]))
    tower = VitImage(str(folder))
    for geometry in (tower.square((50, 50), 32), tower.geometry((50, 50), 32, 1333)):
        assert torch.allclose(geometry.image(frame), expected, atol=1e-4)


def test_a_damaged_preprocessor_config_is_an_error(vit: str, tmp_path: Path) -> None:
    shutil.copytree(vit, tmp_path / "clip")
    for text in ("{", '{"image_mean": 1}', '{"image_std": [0, 1, 1]}', '{"resample": "x"}', "[]"):
        (tmp_path / "clip/preprocessor_config.json").write_text(text)
        with pytest.raises(InputError, match=r"its preprocessor_config.json cannot be read"):
            VitImage(str(tmp_path / "clip"))


@pytest.mark.parametrize("kind", ["convnext", "vit"])
@pytest.mark.parametrize("sizes", [{"short_side": 32}, {"square": 32}, {"short_side": 64, "long_side": 64}])
def test_features_of_a_video_are_those_of_its_frames(kind: str, sizes: dict[str, int], request: pytest.FixtureRequest) -> None:
    """Any number of frames per pass, and each frame by hand: prepared, mapped, pooled."""
    checkpoint = request.getfixturevalue(kind)
    video = video_of(noise(5, 18, 30, 3))
    dense = np.random.default_rng(1).random((3, 5, 18, 30)) > 0.7
    dense[1, 2] = False
    masks = RleMasks.from_dense(dense)
    results = []
    for per_pass in (1, 3, 8):
        pooling = ClipPooling(build(PoolSettings, {"checkpoint": checkpoint, "frames_per_pass": per_pass, **sizes}, "test"))
        features = pooling.features(video, masks)
        results.append([np.stack(list(features[name])) for name in (POOL, FRAME)])
    tower, geometry = pooling.image, pooling.geometry((18, 30))
    if "square" in sizes:
        assert geometry.resized == (32, 32)
    for pooled, frame in results:
        assert pooled.shape == (5, 3, pooling.channels) and frame.shape == (5, pooling.channels)
        assert pooled.dtype == frame.dtype == np.float16
        for t in range(5):
            maps = [m[0] for m in tower.maps(geometry.image(video.read(t))[None])]
            own = torch.cat([torch.from_numpy(dense[:, t]), torch.ones(1, 18, 30, dtype=torch.bool)])
            expected = pool(maps, tower.strides, geometry, own).numpy()
            assert np.allclose(pooled[t], expected[:3], atol=4e-3) and np.allclose(frame[t], expected[3], atol=4e-3)
        assert (pooled[2, 1] == 0).all() and (np.delete(pooled.reshape(15, -1), 7, 0) != 0).any(1).all()


def test_tracks_are_decoded_in_parts(convnext: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pooling = ClipPooling(PoolSettings(checkpoint=convnext, short_side=32))
    video, masks = video_of(noise(2, 18, 30, 3)), RleMasks.from_dense(np.random.default_rng(1).random((5, 2, 18, 30)) > 0.7)
    whole = list(pooling.features(video, masks)[POOL])
    monkeypatch.setattr("rvos_cache.clip.pooling.PIXELS", 2 * 18 * 30)
    parts = list(pooling.features(video, masks)[POOL])
    assert np.allclose(whole, parts, atol=1e-3)
    without = list(pooling.features(video, RleMasks.empty(0, 2, (18, 30)))[POOL])
    assert [frame.shape for frame in without] == [(0, pooling.channels)] * 2


def test_the_record_names_the_parts_of_the_checkpoint(convnext: str, vit: str, tmp_path: Path) -> None:
    records = [ClipPooling(PoolSettings(checkpoint=name)).record() for name in (convnext, vit)]
    assert [r["widths"] for r in records] == [list(WIDTHS), [24]]
    assert records[0]["short_side"] == 448 and records[0]["square"] == 0 and records[0]["checkpoint"] == convnext
    digests = [r[part] for r in records for part in ("image", "text", "head")]
    assert len(set(digests)) == 6
    # The CLIP inside a checkpoint of SSA has no image head; its maps can be pooled.
    shutil.copytree(convnext, tmp_path / "headless")
    (tmp_path / "headless" / HEAD_FILE).unlink()
    headless = ClipPooling(PoolSettings(checkpoint=str(tmp_path / "headless"))).record()
    assert headless["head"] is None and headless["image"] == records[0]["image"]
    with pytest.raises(InputError, match=r"head.safetensors: no such file; convert"):
        load_head(str(tmp_path / "headless"))


@pytest.mark.parametrize(("name", "shape"), [("fc2.weight", (PROJECTION, 5)), ("norm.bias", (3,)), ("logit_scale", (2,))])
def test_a_head_of_other_shapes_is_an_error(convnext: str, tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(convnext, tmp_path / "clip")
    tensors = load_file(tmp_path / "clip" / HEAD_FILE)
    for changed in ({**tensors, name: torch.zeros(shape)}, {n: v for n, v in tensors.items() if n != name}):
        save_file(changed, tmp_path / "clip" / HEAD_FILE)
        with pytest.raises(InputError, match=r"its image head cannot be read"):
            head_digest(str(tmp_path / "clip"))


def test_settings_have_one_size() -> None:
    assert (PoolSettings(checkpoint="c").short_side, PoolSettings(checkpoint="c").square) == (448, 0)
    square = PoolSettings(checkpoint="c", square=224)
    assert square.short_side == 0
    # What a card says is read again as it was.
    for settings in (square, PoolSettings(checkpoint="c"), PoolSettings(checkpoint="c", short_side=0)):
        assert build(PoolSettings, settings.model_dump(mode="json"), "card") == settings
    with pytest.raises(InputError, match="square and short_side are given"):
        build(PoolSettings, {"checkpoint": "c", "short_side": 448, "square": 224}, "pool-clip")


def test_frames_may_keep_their_size(convnext: str, vit: str) -> None:
    for checkpoint, padded in ((convnext, (32, 64)), (vit, (16, 40))):
        geometry = ClipPooling(PoolSettings(checkpoint=checkpoint, short_side=0)).geometry((18, 38))
        assert geometry.padded == padded and geometry.resized == ((18, 38) if checkpoint == convnext else padded)


def test_wrong_checkpoints_are_errors_of_one_line(vit: str, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        InputError, match=r"its model is 'bert', expected CLIP; give a folder that rvos-cache convert-clip"
    ) as error:
        load_image(str(tmp_path / "bert"))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="square 33: this CLIP has patches of 8 pixels"):
        VitImage(vit).square((5, 5), 33)


def test_features_beyond_float16_name_the_frame(convnext: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pooling = ClipPooling(PoolSettings(checkpoint=convnext, short_side=32))
    video, masks = video_of(noise(3, 18, 30, 3)), RleMasks.from_dense(np.ones((1, 3, 18, 30), bool))
    for value in (7e4, -7e4, float("nan")):
        own = pooling.image.maps

        def maps(images: torch.Tensor, own: Any = own, value: float = value) -> list[torch.Tensor]:
            out = [m.clone() for m in own(images)]
            out[2][1] = value
            return out

        monkeypatch.setattr(pooling.image, "maps", maps)
        features: Iterator[Any] = pooling.features(video, masks)[POOL]
        next(features)
        with pytest.raises(InputError, match="video v, frame 00001: CLIP's features are NaN or above 60000"):
            next(features)
        monkeypatch.undo()


def test_the_frame_is_read_after_the_tracks(convnext: str) -> None:
    pooling = ClipPooling(PoolSettings(checkpoint=convnext, short_side=32))
    features = pooling.features(video_of(noise(2, 18, 30, 3)), RleMasks.empty(1, 2, (18, 30)))
    next(features[POOL])
    with pytest.raises(ValueError, match="clip_frame is read before the end of clip_pool"):
        next(features[FRAME])


def test_boxes_are_shares_of_the_frame() -> None:
    dense = np.zeros((2, 3, 8, 10), bool)
    dense[0, 1, 2:6, 5:10] = True
    dense[1, 2, 7, 0] = True
    boxes = box_shares(RleMasks.from_dense(dense))
    assert boxes.shape == (3, 2, 4) and boxes.dtype == np.float32
    np.testing.assert_allclose(boxes[1, 0], [0.5, 0.25, 1.0, 0.75])
    np.testing.assert_allclose(boxes[2, 1], [0.0, 0.875, 0.1, 1.0])
    assert not boxes[0].any() and not boxes[1, 1].any() and not boxes[2, 0].any()
