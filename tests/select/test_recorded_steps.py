"""Steps of padded batches that are recorded once, against steps as they are computed elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_caches import numbers, run
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_select.contracts import write_caches
from rvos_select.contracts.host_reads import HostReads
from rvos_select.data.caches import TrackSource
from rvos_select.data.collate import collate
from rvos_select.data.padding import PaddedBatch, padded_shape, padded_size
from rvos_select.data.resident import resident
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.texts import TextSource
from rvos_select.selectors import SELECTORS, Selector, selector_class
from rvos_select.training import recorded, train

CPU = torch.device("cpu")
STATIC = sorted(name for name in SELECTORS if selector_class(name).static_shapes)
SMALL: dict[str, dict[str, Any]] = {
    "sola": {"width": 16, "align_width": 16, "negatives": 5, "layers": 2},
    "mean-cosine": {"width": 16},
}
ROWS = [[(0, 0), (1, 1), (2, 0)], [(1, 0), (1, 2), (1, 1)], [(2, 3)]]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[VideoSample]:
    """Three videos of other lengths and other numbers of tracks."""
    tracks, texts = write_caches(tmp_path_factory.mktemp("recorded"))
    source, words = TrackSource([tracks]), TextSource([texts])
    return [load_video(source, words, v, thresholds={str(tracks): 0.3}) for v in source.video_ids()]


def make(name: str, samples: list[VideoSample]) -> Selector:
    torch.manual_seed(1)
    cls = selector_class(name)
    channels = {"token_channels": samples[0].tokens.shape[2], "word_channels": samples[0].words[0].vectors.shape[1]}
    return cls(cls.Config(**channels, **SMALL[name])).eval()


def gradients(model: Selector, losses: dict[str, Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(losses["loss"], list(model.parameters()), allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("own_candidates", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("tables", [False, True], ids=["copied", "resident"])
@pytest.mark.parametrize("rows", ROWS, ids=["videos", "video", "one"])
def test_a_padded_batch_has_the_same_losses(
    samples: list[VideoSample], name: str, rows: list[tuple[int, int]], tables: bool, own_candidates: bool
) -> None:
    """And gradients; the tensors held another batch of the shape before."""
    model = make(name, samples)
    source = resident(samples, CPU, "true") if tables else samples
    if own_candidates:
        source = [replace(s, candidates=torch.arange(s.candidates.numel()).reshape(s.candidates.shape) % 3 > 0) for s in source]
    batch = collate([(source[v], row) for v, row in rows])
    padded = PaddedBatch(batch, CPU)
    padded.buffer.fill_(255)
    torch.use_deterministic_algorithms(True)  # new memory is filled with 255 too
    padded.load(batch)
    torch.use_deterministic_algorithms(False)
    expected, losses = model.loss(batch.to("cpu")), model.loss(padded.batch())
    assert tuple(padded.batch().track_mask.shape) > tuple(batch.track_mask.shape)
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, atol=1e-6, rtol=1e-5)
    for one, other in zip(gradients(model, losses), gradients(model, expected)):
        torch.testing.assert_close(one, other, atol=1e-4 * max(1.0, float(other.abs().max())), rtol=1e-4)


@pytest.mark.parametrize("name", STATIC)
def test_it_reads_nothing_of_the_device(samples: list[VideoSample], name: str) -> None:
    """A recording would fail, or go on with the values of the batch that was recorded."""
    model, source = make(name, samples).train(), resident(samples, CPU, "true")
    padded = PaddedBatch(batch := collate([(source[1], row) for row in range(3)]), CPU)
    padded.load(batch)
    with HostReads() as reads:
        model.loss(padded.batch())["loss"].backward()
    assert reads.total == 0, reads.counts


def test_sizes_are_few_and_at_most_a_quarter_too_large() -> None:
    sizes = [padded_size(size, 16) for size in range(1, 513)]
    assert sorted(set(sizes)) == [16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512]
    assert all(size <= padded <= max(16, 1.25 * size + 16) for size, padded in enumerate(sizes, 1))
    assert all(a <= b for a, b in zip(sizes, sizes[1:]))


def test_what_cannot_be_recorded(samples: list[VideoSample]) -> None:
    steps = recorded.RecordedSteps(lambda batch: {}, CPU)
    batch = collate([(samples[0], 0)])
    none = replace(samples[0], candidates=samples[0].candidates & False)
    assert steps.fits(batch) and not steps.fits(collate([(none, 0)]))
    steps.batches = dict.fromkeys(range(recorded.LIMIT))  # type: ignore[assignment]
    assert not steps.fits(batch)
    steps.batches[padded_shape(batch)] = PaddedBatch(batch, CPU)
    assert steps.fits(batch)
    with pytest.raises(ValueError, match="hides its ground truth"):
        PaddedBatch(batch, CPU).load(replace(batch, target=None))


@pytest.mark.parametrize(
    "values", [{"batch": "video"}, {"batch": "single", "batch_size": 3}, {"batch": "single", "optim": {"warmup": 9}}],
    ids=["video", "single", "warmup"],
)  # fmt: skip
def test_a_run_of_recorded_steps_is_the_run(
    tmp_path: Path, caches: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    """Losses and weights but for rounding: the order of the steps, the learning rates and the clipping are the same."""
    # Of SOLA some gradients are zero but for rounding, which AdamW makes as large as all others.
    values |= {"selector": "mean-cosine", "config": {"word_channels": 8, "width": 16}}
    plain = run(caches, tmp_path / "plain", epochs=3, **values)
    monkeypatch.setattr(train, "can_record", lambda model, device: model.static_shapes)
    shapes: list[Any] = []
    monkeypatch.setattr(recorded.Graphs, "run", lambda self, shape, compute: (shapes.append(shape), compute())[1])
    replayed = run(caches, tmp_path / "replayed", epochs=3, **values)
    assert len(shapes) >= 9 > len(set(shapes))
    for one, other in zip(numbers(plain), numbers(replayed), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_a_step_that_cannot_be_recorded_says_what_to_set(samples: list[VideoSample], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of a shape is computed as always, so an error of it is the module's own."""
    batch, failing = collate([(samples[0], 0)]), torch.nn.Linear(2, 2)

    def compute(batch: Any) -> dict[str, Tensor]:
        return {"loss": failing(torch.zeros(3)).sum()}

    steps = recorded.RecordedSteps(compute, CPU)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        steps.step(batch)
    steps.graphs.graphs[padded_shape(batch)] = None
    monkeypatch.setattr(steps.graphs, "_capture", lambda compute: compute())
    with pytest.raises(InputError, match=r"cannot be recorded as a CUDA graph \(.*shapes cannot.*cuda_graphs=false"):
        steps.step(batch)
