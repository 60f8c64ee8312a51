"""Steps in micro-batches against the same step at once: gradients, losses, samples, and what is refused."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_caches import numbers, run, settings
from tiny_dmvs import batch as dmvs_batch
from tiny_dmvs import dmvs, fixed_points, single
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_select.contracts import write_caches
from rvos_select.data import micro_batches as parts_module
from rvos_select.data.augment import Clip
from rvos_select.data.batch import Batch
from rvos_select.data.caches import TrackSource
from rvos_select.data.clips import ClipSampler, ClipSettings
from rvos_select.data.epochs import Step, steps
from rvos_select.data.micro_batches import MicroBatch, by_step, micro_batches
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.texts import TextSource
from rvos_select.selectors import Selector, selector_class
from rvos_select.training import memory
from rvos_select.training.validate import Validator


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[VideoSample]:
    """Three videos of four expressions; the text's channels are 64, the tokens' 16."""
    tracks, texts = write_caches(tmp_path_factory.mktemp("micro"))
    source, words = TrackSource([tracks]), TextSource([texts])
    requires = ("truth", "overlap")
    return [load_video(source, words, v, thresholds={str(tracks): 0.3}, requires=requires) for v in source.video_ids()]


def summed(model: Selector, parts: Iterator[MicroBatch]) -> tuple[dict[str, float], list[Tensor]]:
    """The losses and gradients that the training loop adds up over the parts of one step."""
    model.zero_grad()
    losses: dict[str, float] = {}
    for part in parts:
        own = {name: value * part.share for name, value in model.loss(part.batch).items()}
        own["loss"].backward()  # type: ignore[no-untyped-call]
        losses = {name: losses.get(name, 0.0) + value.item() for name, value in own.items()}
    return losses, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_same(actual: tuple[dict[str, float], list[Tensor]], expected: tuple[dict[str, float], list[Tensor]]) -> None:
    assert actual[0] == pytest.approx(expected[0], abs=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected[1] if gradient.numel())
    for own, other in zip(actual[1], expected[1]):
        torch.testing.assert_close(own, other, atol=1e-5 * largest, rtol=0)
    assert largest > 1e-3


@pytest.mark.parametrize("how", ["single", "clip"])
@pytest.mark.parametrize(
    ("name", "config"),
    [("mean-cosine", {}), ("sola", {"width": 16, "layers": 1, "heads": 2, "negatives": 2})],
)
def test_gradients_do_not_depend_on_the_size_of_the_parts(
    samples: list[VideoSample], name: str, config: dict[str, Any], how: str
) -> None:
    """A step of four expressions of three videos, of different numbers of tracks, as 1, 2, 3 and 4 at once."""
    torch.manual_seed(0)
    kind = selector_class(name)
    model = kind(kind.Config(token_channels=16, word_channels=64, **config)).eval()
    rows = [(samples[0], 0), (samples[0], 1), (samples[1], 1), (samples[2], 0)]
    results = {}
    for size in (4, 1, 2, 3):
        # Long ones: norms over the single frame that SOLA's convolutions leave of 8 enlarge rounding errors.
        sampler = ClipSampler(ClipSettings(frames=24), torch.Generator().manual_seed(1)) if how == "clip" else None
        parts = list(micro_batches([Step(rows, "step")], size, (), sampler, None))
        assert [len(part.batch) for part in parts] == {1: [1] * 4, 2: [2, 2], 3: [3, 1], 4: [4]}[size]
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
        results[size] = summed(model, iter(parts))
        assert_same(results[size], results[4])
    unweighted = summed(model, (replace(part, share=0.5) for part in micro_batches([Step(rows, "")], 3, (), None, None)))
    if how == "single":
        with pytest.raises(AssertionError):
            assert_same(unweighted, results[4])


@pytest.mark.parametrize("masks", ["drawn", "frozen"])
def test_dmvs_in_parts(monkeypatch: pytest.MonkeyPatch, masks: str) -> None:
    """Expressions of 3, 1, 0 and 2 visible objects: the means of single expressions are not the mean over objects."""
    fixed_points(monkeypatch)
    model = dmvs(masks=masks)
    whole = dmvs_batch(b=4, t=3, objects=3)
    assert whole.truth is not None
    kept = [masks[:n] for masks, n in zip(whole.truth, (3, 1, 0, 3))]
    kept[3] = torch.cat([kept[3][:2], torch.zeros_like(kept[3][:1])])
    whole = replace(whole, truth=tuple(kept))
    if masks == "drawn":
        assert model.normalisers(whole) == {"expressions": 4, "objects": 6}
    expected = summed(model, iter([MicroBatch(whole, "", 1.0, 4, True)]))
    rows = [single(whole, i) for i in range(4)]
    totals = parts_module._sums((model.normalisers(row) for row in rows), "step")
    assert totals == model.normalisers(whole)
    share = 1.0 if totals else 0.25
    actual = summed(model, (MicroBatch(replace(row, normalisers=totals), "", share, 4, i == 3) for i, row in enumerate(rows)))
    assert_same(actual, expected)
    if masks == "drawn":
        means = summed(model, (MicroBatch(row, "", 0.25, 4, i == 3) for i, row in enumerate(rows)))
        with pytest.raises(AssertionError):
            assert_same(means, expected)


def jitter(clip: Clip, generator: torch.Generator) -> Clip:
    """Takes a random number, and with an odd one removes the objects."""
    number = int(torch.randint(0, 1000, (), generator=generator))
    truth = clip.truth if number % 2 else torch.zeros_like(clip.truth)
    return replace(clip, pixels=clip.pixels // 2, truth=truth, sentence=f"{clip.sentence} {number}")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[VideoSample]:
    """As `samples`, with pixels of another size than the masks."""
    from rvos_cache.types import FeatureSpec

    tracks, texts = write_caches(tmp_path_factory.mktemp("films"), (FeatureSpec("rgb", ("T", 6, 8, 3), "uint8", by_frame=True),))
    source, words = TrackSource([tracks]), TextSource([texts])
    requires = ("truth", "overlap", "pixels")
    return [load_video(source, words, v, thresholds={str(tracks): 0.3}, requires=requires) for v in source.video_ids()]


def visible(batch: Batch) -> dict[str, float]:
    """A selector's normalisers. Raises AssertionError for a batch whose pixels were read without need."""
    assert batch.truth is not None and batch.pixels is None
    return {"objects": float(sum(int(masks.flatten(1).any(1).sum()) for masks in batch.truth)), "expressions": float(len(batch))}


@hypothesis_settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 5), augmented=st.booleans(), seed=st.integers(0, 9))
def test_samples_frames_and_augmentation_do_not_depend_on_the_size(
    films: list[VideoSample], size: int, augmented: bool, seed: int
) -> None:
    """Also with normalisers, which look at every clip before the step."""

    def epoch(at_once: int) -> list[MicroBatch]:
        generator = torch.Generator().manual_seed(seed)
        sampler = ClipSampler(ClipSettings(frames=3), generator, ("pixels", "truth"), jitter if augmented else None)
        order = steps(films, "single", 5, generator)
        return list(micro_batches(order, at_once, ("pixels", "truth"), sampler, visible))

    whole, parts = epoch(0), epoch(size)
    assert [len(part.batch) for part in whole] == [5, 5, 2]
    singles = [(p.batch, i) for p in whole for i in range(len(p.batch))]
    divided = [(p.batch, i) for p in parts for i in range(len(p.batch))]
    assert len(singles) == len(divided) == 12
    for (a, i), (b, j) in zip(singles, divided):
        assert a.sentences[i] == b.sentences[j] and torch.equal(a.frame_index[i], b.frame_index[j])
        assert torch.equal(a.pixels[i], b.pixels[j]) and torch.equal(a.truth[i], b.truth[j])
    for group, step in zip(by_step(iter(parts)), whole):
        _, own = group
        counts = visible(replace(step.batch, pixels=None))
        for part in own:
            assert part.step_size == len(step.batch)
            assert part.batch.normalisers == ({} if part.last and len(part.batch) == part.step_size else counts)
            assert part.share == 1.0


@pytest.mark.parametrize("normalisers", [None, visible, lambda _: {}])
def test_each_clip_is_augmented_once(films: list[VideoSample], normalisers: Any) -> None:
    """Used batches are freed, though normalisers need the whole step; the last one waits for the next."""
    sentences = []

    def counted(clip: Clip, generator: torch.Generator) -> Clip:
        sentences.append(clip.sentence)
        return jitter(clip, generator)

    sampler = ClipSampler(ClipSettings(frames=3), torch.Generator(), ("pixels", "truth"), counted)
    rows = [(films[0], i % 4) for i in range(5)]
    parts = micro_batches([Step(rows, "")], 2, ("pixels", "truth"), sampler, normalisers)
    references: list[Any] = []
    for part in parts:
        assert part.batch.pixels is not None and all(reference() is None for reference in references[:-1])
        references.append(weakref.ref(part.batch.pixels[0]))
        del part
    assert len(references) == 3 and sentences == [sample.expressions[row].text for sample, row in rows]


class PerObject(Selector):
    """A loss that is the mean number of the first frame's visible pixels over the objects."""

    def normalisers(self, batch: Batch) -> dict[str, float]:
        assert batch.truth is not None
        return {"objects": float(sum(map(len, batch.truth)))}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.truth is not None
        totals = batch.normalisers or self.normalisers(batch)
        return {"loss": torch.stack([masks[:, 0].sum() for masks in batch.truth]).sum() / max(totals["objects"], 1)}


def test_losses_of_validation_do_not_depend_on_the_size(samples: list[VideoSample]) -> None:
    """Each step of five expressions counts by them, whichever its parts."""
    model, losses = PerObject({"token_channels": 16, "word_channels": 64}), {}
    for size in (0, 1, 2, 4):
        validator = Validator(samples, {}, 0, ClipSettings(frames=3), 5, size)
        values = [
            (model.loss(batch)["loss"].item() * weight, len(batch)) for batch, weight in validator._batches(model, ("truth",))
        ]
        assert [n for _, n in values] == {0: [5, 5, 2], 1: [1] * 12, 2: [2, 2, 1, 2, 2, 1, 2], 4: [4, 1, 4, 1, 2]}[size]
        losses[size] = sum(value for value, _ in values)
    assert list(losses.values()) == pytest.approx([losses[0]] * 4) and losses[0] > 0


def test_normalisers_of_other_names_are_one_line(films: list[VideoSample]) -> None:
    rows = [(films[0], 0), (films[0], 1)]
    answers = iter([{"objects": 1.0}, {}])
    with pytest.raises(InputError, match=r"key: the selector's normalisers\(batch\) has \[\] .*\['objects'\] for another"):
        list(micro_batches([Step(rows, "key")], 1, (), None, lambda _: next(answers)))


def test_parts_are_made_one_by_one(films: list[VideoSample], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    collate = parts_module.collate
    monkeypatch.setattr(parts_module, "collate", lambda rows, *a, **k: sizes.append(len(rows)) or collate(rows, *a, **k))
    parts = micro_batches([Step([(films[0], i % 4) for i in range(6)], "")], 2, ("pixels",), None, None)
    assert not sizes
    next(parts)
    assert sizes == [2]
    next(parts)
    assert sizes == [2, 2]


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("how", ["single", "clip"])
def test_a_run_in_parts_is_the_run(tmp_path: Path, caches: tuple[Path, ...], how: str) -> None:
    """Losses of training and validation, rates and scores of three epochs; a run goes on with parts of another size."""
    values: dict[str, Any] = {"selector": "mean-cosine", "config": {}, "batch": how, "batch_size": 5, "clip": {"frames": 2}}
    whole = run(caches, tmp_path / "whole", **values)
    for size in (1, 2, 7):
        parts = run(caches, tmp_path / str(size), micro_batch=size, **values)
        for own, expected in zip(numbers(parts), numbers(whole)):
            assert own == pytest.approx(expected, abs=1e-5)
    assert len(numbers(whole)) == 3
    values["optim"] = {"lr": 3e-3}
    begun = run(caches, tmp_path / "begun", epochs=1, **values)
    resumed = run(caches, begun, resume=True, epochs=3, micro_batch=2, **values)
    assert numbers(resumed)[-1] == pytest.approx(numbers(whole)[-1], abs=1e-5)


def test_a_run_that_was_started_before_there_were_parts_is_resumed(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    values: dict[str, Any] = {"selector": "mean-cosine", "config": {}, "batch": "single"}
    out = run(caches, tmp_path / "run", epochs=1, **values)
    path = out / "settings.json"
    record = json.loads(path.read_text())
    del record["settings"]["micro_batch"], record["settings"]["optim"]["rates"]
    path.write_text(json.dumps(record))
    run(caches, out, resume=True, epochs=2, **values)
    assert numbers(out) == numbers(run(caches, tmp_path / "whole", epochs=2, **values))


def test_a_step_of_a_video_has_no_parts(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    with pytest.raises(InputError, match="micro_batch=2 .* batch=video a step is one video; .*--set batch=single"):
        run(caches, tmp_path / "run", micro_batch=2)
    assert not (tmp_path / "run" / "settings.json").exists()


class Checkpointing:
    """Settings of a selector that may compute again what it does not keep."""

    checkpointing = False


FAULTS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 79 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
]


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("fault", FAULTS, ids=["now", "old", "cpu"])
def test_a_step_that_is_too_large_names_what_lowers_it(
    tmp_path: Path, caches: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch, fault: RuntimeError
) -> None:
    model = selector_class("mean-cosine")

    def refuse(self: Selector, batch: Batch) -> dict[str, Tensor]:
        raise fault

    monkeypatch.setattr(model, "loss", refuse)
    values: dict[str, Any] = {"selector": "mean-cosine", "config": {}, "batch": "clip", "batch_size": 4, "clip": {"frames": 6}}
    with pytest.raises(InputError) as error:
        run(caches, tmp_path / "run", **values)
    assert "\n" not in str(error.value)
    expected = (
        "out of memory in a training step of batch_size=4 expressions, 4 at once with clips of 6 frames; "
        "--set micro_batch=2 (now 0, which is batch_size=4); --set clip.frames=3 (now 6)"
    )
    assert str(error.value).endswith(expected) and str(error.value).startswith("v")
    monkeypatch.setattr(model, "loss", lambda self, batch: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(caches, tmp_path / "other", **values)


@pytest.mark.usefixtures("on_cpu")
def test_what_lowers_the_memory() -> None:
    def fixes(config: Any = None, **values: Any) -> list[str]:
        return memory._fixes(settings(**values), config)

    assert fixes(batch="video") == ["batch=single"]
    assert fixes(Checkpointing(), batch="single", batch_size=8, micro_batch=3) == [
        "micro_batch=1 (now 3)",
        "config.checkpointing=true (now false)",
    ]
    assert fixes(batch="clip", batch_size=8, micro_batch=1, clip={"frames": 1})[0].startswith("precision=bf16")
    with pytest.raises(InputError, match="at once"), memory.explain_out_of_memory("a", settings(batch="single"), None):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_lowers_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kept = ["resident=false (now auto)", "cuda_graphs=false (now true)"]
    assert memory._fixes(settings(batch="video"), None) == ["batch=single", *kept]
    assert memory._fixes(settings(batch="video", cuda_graphs=False), None) == ["batch=single", *kept[:1]]
    assert memory._fixes(settings(batch="video", resident="false"), None) == ["batch=single"]


def test_the_peak_of_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card())
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 79 * 2**30)
    assert memory._peak() == " (peak 79.0 GiB of 80.0)"
