"""SSA's live form: chunks, padding, gradients, losses of clips of several sizes, texts, switches of the paper's tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny_ssa
import torch
from torch import Tensor

from rvos_cache.clip.towers import encode_texts
from rvos_cache.errors import InputError
from rvos_select.data.batch import Batch
from rvos_select.data.cards import CacheCards
from rvos_select.data.clips import ClipSampler, ClipSettings
from rvos_select.data.features import StoredFeature
from rvos_select.data.texts import TextSource
from rvos_select.data.video import InferenceVideo
from rvos_select.selectors.ssa import Ssa, clip, live
from rvos_select.selectors.ssa.losses import normalisers

# Whole runs; left to test-all. Modules are on the CPU, so what they are compared with is too.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("file_on_cpu")]

CPU = torch.device("cpu")


def clip_batch(module: Ssa, count: int = 2, seed: int = 0, frames: int = 3) -> Batch:
    sampler = ClipSampler(
        ClipSettings(frames=frames, within=0), torch.Generator().manual_seed(seed), (*module.requires, "overlap")
    )
    return sampler(tiny_ssa.rows(tiny_ssa.tiny().frames["train"], module)[:count])


def video(module: Ssa) -> InferenceVideo:
    sample, _ = tiny_ssa.rows(tiny_ssa.tiny().frames["train"], module)[0]
    return InferenceVideo(sample, (0, 1), tuple(module.requires), CPU)


def answers(module: Ssa) -> list[tuple[Tensor, Tensor]]:
    """Logits and all masks of each expression of a video."""
    out = []
    with torch.inference_mode():
        for scored in module.infer(video(module)):
            assert scored.draw is not None
            out.append((scored.logits, torch.cat(list(scored.draw(torch.ones_like(scored.logits, dtype=torch.bool))), 1)))
    return out


@pytest.mark.slow
def test_chunks_of_frames_change_nothing() -> None:
    reference = answers(tiny_ssa.live(chunk=18))
    assert len(reference) == 2
    for chunk in (1, 5):
        for (logits, masks), (other_logits, other_masks) in zip(reference, answers(tiny_ssa.live(chunk=chunk)), strict=True):
            assert torch.allclose(logits, other_logits, atol=1e-5)
            assert (masks != other_masks).float().mean() < 1e-4
    assert not torch.allclose(reference[0][0], reference[1][0], atol=1e-3)


def test_masks_are_the_same_where_maps_are_computed_again() -> None:
    for (logits, masks), (other_logits, other_masks) in zip(
        answers(tiny_ssa.live()), answers(tiny_ssa.live(keep_bytes=0)), strict=True
    ):
        assert torch.allclose(logits, other_logits, atol=1e-6)
        assert torch.equal(masks, other_masks)
        assert masks.shape[2:] == (96, 160)
        assert masks.any() and not masks.all()


def test_maps_and_frames_are_kept_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    select = StoredFeature.select
    monkeypatch.setattr(StoredFeature, "select", lambda *a: reads.append(1) or select(*a))
    for keep_bytes, kept in ((10**9, True), (0, False)):
        module = tiny_ssa.live(keep_bytes=keep_bytes, chunk=10)
        reads.clear()
        with torch.inference_mode():
            parts = [scored.draw.__self__ for scored in module.infer(video(module))]  # type: ignore[union-attr]
        assert [bool(answer.features) for answer in parts] == [kept, kept]
        chunks = len(live.chunks(parts[0].frames.length, 10))
        # Of the two expressions the second reads no frame again; beside the chunks, one frame tells the size.
        assert sum(reads) <= (chunks + 2 if kept else 2 * chunks + 2) and sum(reads) >= (chunks if kept else 2 * chunks)


@torch.inference_mode()
def test_training_and_prediction_compute_the_same_queries() -> None:
    """The last of the layers that a clip hands on is what a whole video has, whose logit is that of p(referred)."""
    module = tiny_ssa.live(handed_on=2)
    batch = video(module).batch([0])
    assert batch.pixels is not None
    frames = batch.pixels[0][:4]
    text = module.frozen[clip.TEXT_PART](batch.sentences, 40)
    geometry = live.geometry_of(module, (96, 160))
    training = live.clip_output(module, live.resized(frames, geometry), text.of(0, 4))
    whole = live.answer(module, live.InputFrames(frames, 4, geometry, CPU, 10**9), text, (96, 160))
    assert torch.allclose(training.video_logits[-1, -1, 0].softmax(-1)[:, 0], whole.logits.sigmoid(), atol=1e-5)
    assert torch.allclose(training.mask_embed[-1, -1, 0], whole.mask_embed, atol=1e-4)
    assert torch.allclose(training.mask_features[0], torch.cat(whole.features), atol=1e-4)
    assert not torch.allclose(training.video_logits[-1, 0], training.video_logits[-1, 1], atol=1e-4)


def test_forward_and_draw_are_those_of_infer() -> None:
    module = tiny_ssa.live()
    batch = video(module).batch()
    (first, masks), (second, _) = answers(module)
    with torch.inference_mode():
        assert torch.allclose(module(batch), torch.cat([first, second]), atol=1e-6)
        drawn = torch.cat(list(module.draw(video(module).batch([0]), torch.tensor([[True, False, False, True]]))), 1)
    assert torch.equal(drawn, masks[[0, 3]])
    with pytest.raises(ValueError, match="2 expressions"):
        module.draw(batch, torch.ones(2, 4, dtype=torch.bool))


def test_gradients_reach_the_first_adapter_and_not_clip() -> None:
    module = tiny_ssa.live().train()
    torch.manual_seed(0)
    module.loss(clip_batch(module))["loss"].backward()
    assert module.adapters[0].conv1.weight.grad is not None and module.adapters[0].conv1.weight.grad.abs().sum() > 0
    frozen = [*module.frozen[clip.IMAGE_PART].parameters(), *module.frozen[clip.TEXT_PART].parameters()]
    assert frozen and all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    without = {name for name, p in module.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)}
    # A softmax over the one text key is 1; offsets and weights of the deformable attention begin with weights of 0.
    expected = ("text_cross_attention", "attn.l_proj", "attn.v_proj", "video.fusion.0", "time_aware_attn.bias", "level_embed")
    assert [name for name in without if not any(part in name for part in expected)] == []


def test_the_next_stage_reads_the_adapter_inline_alone() -> None:
    inline, side = tiny_ssa.live(), tiny_ssa.live(wiring="side")
    images, text = (
        torch.rand(1, 3, 64, 64),
        clip.Text(torch.randn(1, 16), torch.randn(1, 5, 16), torch.ones(1, 5, dtype=torch.bool)),
    )
    with torch.inference_mode():
        first, second = inline.stages(inline.trunk, images, *text), side.stages(side.trunk, images, *text)
    assert torch.equal(first[0], second[0])
    assert not torch.allclose(first[1], second[1], atol=1e-3)


def test_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for checkpointing in (False, True):
        module = tiny_ssa.live(checkpointing=checkpointing).train()
        torch.manual_seed(0)
        module.loss(clip_batch(module))["loss"].backward()
        grads.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], atol=1e-5 * max(1.0, float(grad.abs().max()))), name


def test_a_step_is_the_sum_of_its_clips() -> None:
    module = tiny_ssa.live()
    together = clip_batch(module, 3)
    sizes = module.normalisers(together)
    parts = [clip_batch_of(together, i) for i in range(3)]
    totals = {name: sum(module.normalisers(part)[name] for part in parts) for name in sizes}
    assert totals == pytest.approx(sizes) and sizes["clips"] == 3
    fixed = torch.linspace(0.01, 0.99, 240).view(120, 2)
    rand = torch.rand
    try:
        torch.rand = lambda *size, **_: fixed[: size[-2]].expand(*size)  # type: ignore[assignment,call-overload]
        with torch.no_grad():
            whole = module.loss(together)
            pieces = [module.loss(replace(part, normalisers=sizes)) for part in parts]
    finally:
        torch.rand = rand
    for name, value in whole.items():
        assert float(sum(piece[name] for piece in pieces)) == pytest.approx(float(value), rel=1e-5), name


def clip_batch_of(batch: Batch, row: int) -> Batch:
    """The expression `row` of a batch of clips alone."""
    at = slice(row, row + 1)
    assert batch.pixels is not None and batch.truth is not None
    return Batch(
        tokens=batch.tokens[at], frame_mask=batch.frame_mask[at], track_mask=batch.track_mask[at], words=batch.words[at],
        word_mask=batch.word_mask[at], sentences=batch.sentences[at], pixels=batch.pixels[at], truth=batch.truth[at],
        sizes=batch.sizes[at],
    )  # fmt: skip


def test_training_takes_clips_of_several_sizes() -> None:
    module = tiny_ssa.live().train()
    batch = clip_batch(module, 2)
    assert batch.pixels is not None and batch.truth is not None
    pixels = (batch.pixels[0][:, :70, :101], batch.pixels[1])  # type: ignore[index]
    truth = (batch.truth[0][:, :, :70, :101], batch.truth[1])
    values = module.loss(replace(batch, pixels=pixels, truth=truth))
    assert len(values) == 8 and all(bool(torch.isfinite(value)) for value in values.values())


def test_frames_are_resized_in_evaluation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training takes them at the size that the augmentation gave."""
    module, sizes = tiny_ssa.live(), []
    output = live.clip_output

    def recorded(ssa: Ssa, pixels: Tensor, text: clip.Text) -> Any:
        sizes.append(tuple(pixels.shape[1:3]))
        return output(ssa, pixels, text)

    monkeypatch.setattr(live, "clip_output", recorded)
    module.loss(clip_batch(module, 1))
    module.train().loss(clip_batch(module, 1))
    assert sizes == [(64, 107), (96, 160)]


def test_an_expression_without_objects_has_a_finite_loss() -> None:
    module = tiny_ssa.live().train()
    batch = clip_batch(module, 1)
    assert batch.truth is not None
    values = module.loss(replace(batch, truth=(batch.truth[0][:0],)))
    values = {name: value.detach() for name, value in values.items()}
    assert float(values["frame_bce"]) == float(values["video_dice"]) == float(values["similarity"]) == 0
    assert bool(torch.isfinite(values["loss"])) and float(values["frame_class"]) > 0
    assert normalisers([batch.truth[0][:0]], 4, 2) == {"clips": 1, "object_frames": 0, "objects": 0, "pairs": 0}


def test_normalisers_by_hand() -> None:
    truth = torch.zeros(3, 2, 4, 4, dtype=torch.bool)
    truth[0, :, 1, 1] = truth[1, 1, 2, 2] = True
    # Two objects, one in both frames, one in the second alone; the third is never visible. 1 + 2 matched in frames, 2 in the clip.
    assert normalisers([truth], 4, 3) == {"clips": 1, "object_frames": 3, "objects": 2, "pairs": 3 * 25}
    assert normalisers([truth, truth], 1, 1) == {"clips": 2, "object_frames": 6, "objects": 4, "pairs": 2 * 9}


def test_stochastic_depth_is_of_training_alone() -> None:
    module = tiny_ssa.live(clip_drop_path=0.5)
    images = torch.rand(2, 3, 64, 64)
    module.train()
    torch.manual_seed(0)
    assert not torch.equal(plain_maps(module, images), plain_maps(module, images))
    module.eval()
    reference = plain_maps(module, images)
    assert torch.equal(reference, plain_maps(module, images))
    still = tiny_ssa.live(clip_drop_path=0.0).train()
    assert torch.equal(reference, plain_maps(still, images))
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in module.trunk.encoder.stages for block in stage.layers]
    assert rates == pytest.approx([0.0, 0.125, 0.25, 0.375, 0.5])


@torch.no_grad()
def plain_maps(module: Ssa, images: Tensor) -> Tensor:
    text = clip.Text(torch.zeros(0), torch.zeros(0), torch.zeros(0))
    return clip.stages(torch.nn.ModuleList(), module.trunk, images, text)[-1]


def test_the_last_stage_can_be_trained() -> None:
    module = tiny_ssa.live(adapters=False, tune_last_stage=True).train()
    images = torch.rand(2, 3, 64, 64)
    module.eval()
    with torch.no_grad():
        own = module.stages(module.trunk, images, *[torch.zeros(0)] * 3)[-1]
    assert torch.equal(own, plain_maps(module, images))
    torch.manual_seed(0)
    module.train().loss(clip_batch(module))["loss"].backward()
    assert module.last_stage is not None
    grads = [p.grad for p in module.last_stage.parameters()]
    assert grads and all(grad is not None for grad in grads)
    names = {name for name, _ in module.named_parameters() if name.startswith("last_stage.")}
    assert names and names <= set(module.state_dict())
    again = tiny_ssa.live(seed=5, adapters=False, tune_last_stage=True)
    with torch.no_grad():
        module.last_stage.layers[0].pwconv1.bias.add_(1)
    again.load_state_dict(module.state_dict())
    cards = CacheCards([], [])
    again.bind(cards)
    assert torch.equal(again.last_stage.layers[0].pwconv1.bias, module.last_stage.layers[0].pwconv1.bias)


def test_text_is_the_towers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_ssa.live(longest=4)
    tower = module.frozen[clip.TEXT_PART]
    sentences = ("the red square moving to the left", "a dot")
    words, lengths = encode_texts(tower.tower, tower.tokenizer, sentences)
    text = tower(sentences, 4)
    assert text.words.shape[1] == 4 and torch.equal(text.words, words[:, :4])
    assert torch.equal(text.sentence, words[torch.arange(2), lengths - 1])
    assert int(lengths[0]) > 4 and bool(text.mask.all())
    online, from_cache = tiny_ssa.live(), tiny_ssa.live(text="cached")
    assert online.encodes_text and not from_cache.encodes_text
    assert clip.TEXT_PART not in from_cache.frozen
    for (logits, _), (other, _) in zip(answers(online), answers(from_cache), strict=True):
        # Cached words are float16.
        assert torch.allclose(logits, other, atol=2e-2)


def test_a_checkpoint_of_other_sizes_is_an_error() -> None:
    with pytest.raises(InputError, match=r"stages have \[8, 16, 24, 32\] channels, the selector \[8, 16, 24, 64\]"):
        tiny_ssa.live(stage_channels=(8, 16, 24, 64))
    with pytest.raises(InputError, match="words have 16 channels, the selector 32"):
        tiny_ssa.live(word_channels=32)
    text = TextSource([tiny_ssa.tiny().texts["train"]]).cards
    with pytest.raises(InputError, match=r"which CLIP\?.*config.clip=FOLDER"):
        Ssa.config_values({}, CacheCards([], text))
    with pytest.raises(InputError, match=r"data: expected a folder of rvos-cache convert-clip.*config.clip=FOLDER"):
        Ssa.config_values({"clip": str(tiny_ssa.tiny().root)}, CacheCards([], text))
    with pytest.raises(ValueError, match="bind"):
        _ = Ssa(tiny_ssa.LIVE).trunk


@pytest.mark.parametrize(
    "switches",
    [
        {"fusion": False}, {"temporal": False}, {"ensemble": "text"}, {"similarity_order": "own"},
        {"fusion": False, "link": False, "temporal": False, "ensemble": "text"}, {"adapters": False}, {"empty": "top1"},
    ],
)  # fmt: skip
def test_switches_of_the_tables_train_and_predict(switches: dict[str, Any]) -> None:
    module, reference = tiny_ssa.live(**switches), tiny_ssa.live()
    torch.manual_seed(0)
    module.train().loss(clip_batch(module, 1))["loss"].backward()
    ((logits, _), _), ((other, _), _) = answers(module.eval()), answers(reference)
    assert logits.shape == (1, 4) and bool(torch.isfinite(logits).all())
    if switches.keys() <= {"similarity_order", "empty"}:
        assert torch.allclose(logits, other)
        assert module.empty == switches.get("empty", "zeros")
    else:
        assert not torch.allclose(logits, other, atol=1e-4)


def test_the_loss_of_validation_is_that_of_frames_and_masks_resized_alike() -> None:
    """To 80 x 133 pixels, which are padded."""
    module = tiny_ssa.live(short_side=80)
    rows = tiny_ssa.rows(tiny_ssa.tiny().frames["train"], module)[:1]
    given = ClipSampler(ClipSettings(frames=2), torch.Generator().manual_seed(0), module.requires)(rows)
    assert given.pixels is not None and given.truth is not None
    geometry = live.geometry_of(module, (given.pixels[0].shape[1], given.pixels[0].shape[2]))
    assert geometry.resized == (80, 133)
    masks = torch.nn.functional.interpolate(given.truth[0].float(), geometry.resized, mode="nearest-exact") > 0.5
    losses = []
    for batch in (given, replace(given, pixels=(live.resized(given.pixels[0][:], geometry),), truth=(masks,))):
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(module.loss(batch))
    for name, value in losses[0].items():
        assert value.item() == pytest.approx(losses[1][name].item(), rel=1e-5), name


@torch.inference_mode()
def test_frames_that_pad_a_shorter_video_are_not_read() -> None:
    module = tiny_ssa.live()
    given = clip_batch(module, 1)
    assert given.pixels is not None
    pixels = given.pixels[0][:]
    longer = replace(
        given,
        tokens=torch.nn.functional.pad(given.tokens, (0, 0, 0, 2)),
        frame_mask=torch.nn.functional.pad(given.frame_mask, (0, 2)),
        frame_index=None,
        pixels=(torch.cat([pixels, torch.zeros_like(pixels[:2])]),),
        truth=None,
    )
    assert torch.allclose(module(longer), module(given), atol=1e-5)


@torch.inference_mode()
def test_masks_have_the_size_of_the_video_and_not_of_its_stored_frames() -> None:
    module = tiny_ssa.live()
    batch = video(module).batch([0])
    every = torch.ones(1, module.config.queries, dtype=torch.bool)
    height, width = batch.sizes[0]
    whole = torch.cat(list(module.draw(batch, every)), 1)
    half = torch.cat(list(module.draw(replace(batch, sizes=((height // 2, width // 2),)), every)), 1)
    assert whole.shape[2:] == (height, width) and half.shape[2:] == (height // 2, width // 2)
    assert (whole[..., ::2, ::2] == half).float().mean() > 0.9


def test_input_is_resized_and_padded_as_detectron2() -> None:
    module = tiny_ssa.live(short_side=448)
    geometry = live.geometry_of(module, (360, 640))
    assert (geometry.resized, geometry.padded) == ((448, 796), (448, 800))
    images = clip.normalised(torch.full((1, 70, 101, 3), 128, dtype=torch.uint8))
    assert images.shape == (1, 3, 96, 128)
    assert not images[:, :, 70:].any() and not images[..., 101:].any() and images[:, :, :70, :101].all()
    truth = live.clip_truth(torch.ones(2, 1, 70, 101))
    assert truth.shape == (2, 1, 96, 128) and truth[..., :70, :101].all() and truth.sum() == 2 * 70 * 101
