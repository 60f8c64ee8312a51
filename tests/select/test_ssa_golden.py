"""SSA's modules and losses against recorded values of the released ones, and the names of its tensors."""

from __future__ import annotations

import pytest
import torch
from golden_ssa import (
    TOLERANCE,
    cut,
    error,
    golden,
    golden_trunk,
    recorded_points,
    released_shapes,
    released_tensors,
)
from golden_values import needs
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_select.selectors.ssa import Ssa, SsaConfig
from rvos_select.selectors.ssa.clip import Text
from rvos_select.selectors.ssa.clip import stages as stages_of
from rvos_select.selectors.ssa.losses import terms
from rvos_select.selectors.ssa_losses import Found, costs, losses

FIELDS = ("frame_logits", "frame_masks", "video_logits", "mask_embed", "mask_features", "frame_embed", "clip_embed")


@pytest.fixture(scope="module")
def ssa() -> Ssa:
    module = Ssa(SsaConfig())
    module.load_official(released_tensors())
    return module.eval()


def stages() -> list[Tensor]:
    return [golden()[f"stage{i}"] for i in range(4)]


@torch.inference_mode()
def test_the_sentence_is_projected_as_released(ssa: Ssa) -> None:
    assert error("a.text_projection", ssa.text_projection(golden()["sentence"])) < TOLERANCE


@pytest.mark.parametrize("stage", range(4))
@torch.inference_mode()
def test_adapters_are_the_released_ones(ssa: Ssa, stage: int) -> None:
    needs(golden(), f"a.adapter{stage}")
    g = golden()
    out = ssa.adapters[stage](g[f"stage{stage}"], g["sentence"], g["words"], g["word_mask"])
    assert error(f"a.adapter{stage}", out) < TOLERANCE


@torch.inference_mode()
def test_adapters_lie_inside_the_tower(ssa: Ssa) -> None:
    g = golden()
    out = ssa.stages(golden_trunk(), g["w.images"], g["sentence"], g["words"], g["word_mask"])
    assert max(error(f"w.stage{i}", maps) for i, maps in enumerate(out)) < TOLERANCE
    plain = stages_of(ssa.adapters, golden_trunk(), g["w.images"], Text(g["sentence"], g["words"], g["word_mask"]), "side")
    assert error("w.stage0", plain[0]) < TOLERANCE
    assert min(error(f"w.stage{i}", maps) for i, maps in enumerate(plain) if i) > 0.1


@torch.inference_mode()
def test_pixel_and_frame_decoder_are_the_released_ones(ssa: Ssa) -> None:
    out = ssa.pixel_decoder(stages(), golden()["text"])
    values = {"p.mask_features": out.mask_features, "p.map": out.map, "p.text": out.text}
    values |= {f"p.level{i}": level for i, level in enumerate(out.levels)}
    frames = ssa.frame_decoder(out.levels, out.mask_features, out.text)
    values |= {f"b.{name}": getattr(frames, name) for name in ("queries", "logits", "masks")}
    for name, value in values.items():
        assert error(name, value) < TOLERANCE, name


@pytest.mark.parametrize("case", ["c1", "c2", "c3"])
@torch.inference_mode()
def test_the_video_part_is_the_released_one(ssa: Ssa, case: str) -> None:
    needs(golden(), f"{case}.queries")
    queries, text = golden()[f"{case}.queries"], golden()[f"{case}.text"]
    linked, order = ssa.video.link(ssa.video.project(queries.flatten(0, 1)))
    assert torch.equal(order, golden()[f"{case}.order"])
    enhanced = ssa.video.enhance(linked)
    q_v, weights = ssa.video.ensemble(enhanced)
    layers = ssa.video.decode(q_v, enhanced, text.repeat(len(queries), 1, 1))
    logits, mask_embed, clip_embed = ssa.video.heads(layers)
    values = {
        "linked": linked,
        "frame_embed": ssa.video.frame_embed(linked),
        "enhanced": enhanced,
        "q_v": q_v,
        "weights": weights,
    }
    values |= {"layers": layers, "logits": logits[-1], "mask_embed": mask_embed[-1], "clip_embed": clip_embed[-1]}
    for name, value in values.items():
        assert error(f"{case}.{name}", value) < TOLERANCE, name


@torch.inference_mode()
def test_video_masks_have_features_of_their_own(ssa: Ssa) -> None:
    needs(golden(), "d.mask_features")
    assert error("d.mask_features", ssa.mask_features(golden()["p.map"][:1])) < TOLERANCE


@pytest.mark.parametrize("objects", [3, 1, 0, 23])
def test_losses_are_the_released_ones(objects: int) -> None:
    needs(golden(), *(f"e.{name}" for name in FIELDS), f"e.A{objects}.truth")
    output = Found(*(golden()[f"e.{name}"] for name in FIELDS))
    truth = golden()[f"e.A{objects}.truth"].float()
    with recorded_points():
        values = losses(output, [truth], SsaConfig(points=120))
    assert values.keys() == {
        "frame_class", "frame_bce", "frame_dice", "video_class", "video_bce", "video_dice", "similarity", "loss",
    }  # fmt: skip
    for name, value in values.items():
        assert error(f"e.A{objects}.{name}", value) < TOLERANCE, name
    if objects in (1, 3):
        masks = torch.einsum("qc,tchw->qthw", output.mask_embed[-1, 0, 0], output.mask_features[0])
        table = costs(output.video_logits[-1, 0, 0], masks, truth, golden()["e.points120"], SsaConfig(points=120))
        assert error(f"e.A{objects}.costs", table) < TOLERANCE


@pytest.mark.parametrize("objects", [3, 1, 0])
def test_losses_of_frames_are_the_released_ones(objects: int) -> None:
    """On the part of the recorded values that is always there."""
    logits, masks = golden()["e.frame_logits"], golden()["e.frame_masks"]
    queries, channels = logits.shape[3], 4
    nothing = torch.zeros(1, 3, 1, queries, channels)
    output = Found(
        logits, masks, nothing[..., :2], nothing, torch.zeros(1, 3, channels, 5, 8), torch.zeros(3, 1, 3, queries, 4), nothing[0]
    )
    with recorded_points():
        values = losses(output, [golden()[f"e.A{objects}.truth"].float()], SsaConfig(points=120))
    for name in ("frame_class", "frame_bce", "frame_dice"):
        assert error(f"e.A{objects}.{name}", values[name]) < TOLERANCE, name


def random_output() -> tuple[Found, Tensor]:
    """Outputs of one clip of two frames and five queries, and the masks of two objects."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    output = Found(
        random(10, 1, 2, 5, 2), random(10, 1, 2, 5, 4, 4), random(6, 3, 1, 5, 2), random(6, 3, 1, 5, 8), random(1, 2, 8, 4, 4),
        random(3, 1, 2, 5, 8), random(3, 1, 5, 8),
    )  # fmt: skip
    return output, random(2, 2, 16, 16) > 0


def test_a_match_may_stand_for_the_query_itself_or_for_its_place_after_linking() -> None:
    output, truth = random_output()
    order = torch.stack([torch.arange(5), torch.tensor([2, 4, 0, 1, 3])]).expand(3, 1, 2, 5)
    linked = output.frame_embed.gather(3, order[..., None].expand_as(output.frame_embed))

    def similarity(order_of: str, frame_embed: Tensor, order: Tensor | None) -> float:
        torch.manual_seed(0)
        config = SsaConfig(points=16, similarity_order=order_of)
        return losses(output._replace(frame_embed=frame_embed, order=order), [truth], config)["similarity"].item()

    own = similarity("own", linked, order)
    assert own == pytest.approx(similarity("linked", output.frame_embed, None), rel=1e-6)
    assert own != pytest.approx(similarity("linked", linked, order), rel=1e-3)
    with pytest.raises(ValueError, match=r"needs ClipOutput.order"):
        similarity("own", linked, None)


def test_there_are_49_terms() -> None:
    output, masks = random_output()
    for objects in (2, 0):
        truth = masks[:objects]
        values = terms(output, [truth], SsaConfig(points=16))
        assert len(values) == 49
        assert all(bool(torch.isfinite(value)) for value in values.values())


def test_names_are_those_of_the_released_checkpoint(ssa: Ssa) -> None:
    official = ssa.official()
    assert {name: tuple(tensor.shape) for name, tensor in official.items()} == released_shapes()
    assert len(official) == 715
    again = Ssa(SsaConfig())
    again.load_official({**official, "criterion.empty_weight": torch.ones(2)})
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ssa.state_dict().values(), strict=True))
    with pytest.raises(InputError, match="missing 1"):
        again.load_official({name: tensor for name, tensor in official.items() if name != "resizer.fc.bias"})
    with pytest.raises(InputError, match="shape"):
        again.load_official({**official, "resizer.fc.bias": torch.zeros(3)})


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ({}, 46_847_569),
        ({"adapters": False}, 39_832_517),
        ({"adapters": False, "tune_last_stage": True}, 101_444_549),
        ({"form": "cached"}, 30_332_305),
    ],
)
def test_parameters_are_as_many_as_published(config: dict[str, object], parameters: int) -> None:
    with torch.device("meta"):
        module = Ssa(config)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


def test_parts_have_the_published_sizes(ssa: Ssa) -> None:
    parts = {name: sum(p.numel() for p in module.parameters()) for name, module in ssa.named_children() if name != "frozen"}
    assert parts == {
        "text_projection": 197_376, "adapters": 7_015_052, "pixel_decoder": 10_533_312, "frame_decoder": 16_786_178,
        "video": 12_315_651 - 65_792, "mask_features": 65_792,
    }  # fmt: skip
    assert [sum(p.numel() for p in adapter.parameters()) for adapter in ssa.adapters] == [
        806_531,
        1_150_979,
        1_839_875,
        3_217_667,
    ]


def test_a_cut_value_keeps_every_other_entry() -> None:
    """The comparison with the cut values looks at the entries that were cut."""
    value = torch.arange(24.0).view(4, 6)
    assert torch.equal(cut(value, torch.zeros(2, 2)), value[::2, ::3])
