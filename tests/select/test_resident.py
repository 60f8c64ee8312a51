"""Tokens and words on the device, and batches in one copy, against the same batches from the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_caches import numbers, run

from rvos_select.contracts import write_caches
from rvos_select.data.batch import Batch
from rvos_select.data.caches import TrackSource
from rvos_select.data.collate import collate
from rvos_select.data.resident import resident
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.texts import TextSource
from rvos_select.data.transfer import ALIGNMENT, copy_together

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[VideoSample]:
    """Three videos of other lengths and other numbers of tracks."""
    tracks, texts = write_caches(tmp_path_factory.mktemp("resident"))
    source, words = TrackSource([tracks]), TextSource([texts])
    return [load_video(source, words, v, thresholds={str(tracks): 0.3}) for v in source.video_ids()]


@pytest.mark.parametrize("rows", [[(0, 0), (1, 1), (2, 0)], [(1, 0), (1, 2), (1, 1)], [(2, 3)]], ids=["videos", "video", "one"])
@pytest.mark.parametrize("clip", [None, [1, 0, 2]], ids=["whole", "clip"])
def test_a_gathered_batch_is_the_copied_one(
    samples: list[VideoSample], rows: list[tuple[int, int]], clip: list[int] | None
) -> None:
    tables = resident(samples, CPU, "true")
    frames = None if clip is None else [clip] * len(rows)
    copied, waiting = (collate([(source[v], row) for v, row in rows], frames=frames) for source in (samples, tables))
    assert waiting.tokens.isnan().all() and waiting.words.isnan().all()
    gathered = waiting.to("cpu")
    for name in ("tokens", "words", "word_mask", "frame_mask", "track_mask", "target", "track_index", "frame_index"):
        one, other = getattr(gathered, name), getattr(copied, name)
        assert torch.equal(one, other) and one.dtype == other.dtype, name
    assert gathered.rows is None and gathered.mask_facts.words_real == copied.mask_facts.words_real


def test_it_is_only_on_a_gpu_by_itself(samples: list[VideoSample], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where half of its free memory holds them."""
    assert all(s.resident is None for setting in ("auto", "false") for s in resident(samples, CPU, setting))
    size = sum(s.tokens.nbytes + sum(w.vectors.nbytes for w in s.words) for s in samples)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self)
    for free, fits in ((2 * size, True), (2 * size - 2, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 0))
        assert all((s.resident is not None) is fits for s in resident(samples, torch.device("cuda"), "auto"))


def test_rows_of_another_device_are_refused(samples: list[VideoSample]) -> None:
    with pytest.raises(ValueError, match="are on cpu, expected meta"):
        collate([(resident(samples, CPU, "true")[0], 0)]).to("meta")


@pytest.mark.parametrize(
    "values", [{"batch": "video"}, {"batch": "single", "batch_size": 4, "micro_batch": 3}], ids=["video", "micro"]
)
def test_a_run_has_the_same_numbers(tmp_path: Path, caches: tuple[Path, ...], values: dict[str, Any]) -> None:
    """To the bit, and it may be resumed with the other setting."""
    copied, gathered = (run(caches, tmp_path / setting, epochs=2, resident=setting, **values) for setting in ("false", "true"))
    assert numbers(copied) == numbers(gathered)
    weights = [(out / "last/model.safetensors").read_bytes() for out in (copied, gathered)]
    assert weights[0] == weights[1]
    run(caches, copied, resume=True, epochs=3, resident="true", **values)
    run(caches, gathered, resume=True, epochs=3, resident="true", **values)
    assert numbers(copied) == numbers(gathered)


def test_one_copy_holds_every_tensor() -> None:
    tensors = [
        torch.tensor([True, False, True]), torch.arange(6.0).reshape(2, 3).T, torch.tensor(7), torch.ones(3, 1, dtype=torch.float16),
        torch.arange(5, dtype=torch.int32)[::2], torch.zeros(2, 65, dtype=torch.uint8),
    ]  # fmt: skip
    moved = copy_together(tensors, CPU)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tensors, moved))
    assert len({t.untyped_storage().data_ptr() for t in moved}) == 1
    assert all(t.storage_offset() * t.element_size() % ALIGNMENT == 0 for t in moved)


def test_a_batch_for_a_gpu_is_one_copy(samples: list[VideoSample], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor of it, those of its facts too."""
    from rvos_select.data import transfer

    copies: list[int] = []

    def copied(tensors: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        copies.append(len(tensors))
        return copy_together(tensors, CPU)

    monkeypatch.setattr(transfer, "copy_together", copied)
    x = collate([(samples[0], row) for row in range(3)])
    moved = x.to("cuda")
    facts = sum(t is not None for t in x.mask_facts.tensors)
    assert copies == [8 + facts]
    assert (
        isinstance(moved, Batch)
        and torch.equal(moved.tokens, x.tokens)
        and moved.mask_facts.words_real == x.mask_facts.words_real
    )
