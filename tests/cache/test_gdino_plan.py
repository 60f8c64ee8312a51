"""The bytes and the memory that `gdino-queries` plans, and what the budget knows of them, before anything is tracked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_sam2
from released_referdino import SMALL, shared_upstream
from tiny_gdino_queries import SCENE, TEXTS, expressions, make_tracker, scene

from rvos_cache.extraction.budget import check_budget
from rvos_cache.extraction.work import TrackWork
from rvos_cache.trackers.planned import VideoSize


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with tiny_sam2.without_gpu():
        yield


@pytest.mark.parametrize(
    ("texts", "frames", "gigabytes"),
    [(23_051, 79, 29.5), (793, 79, 1.0), (2236, 79, 2.9), (12_913, 27, 5.7), (14, 79, 0.018)],
    ids=["MeViS train", "valid_u", "valid", "Ref-YTVOS train", "a video of MeViS"],
)
def test_planned_bytes_are_those_of_the_design(texts: int, frames: int, gigabytes: float) -> None:
    """Of 15 queries of 256 channels, 13 tokens per text, and 104 bytes per mask."""
    from rvos_cache.trackers.referdino.planning import planned_bytes

    sizes = [VideoSize((360, 640), frames, ["words"] * (texts // 2)), VideoSize((360, 640), frames, ["words"] * -(-texts // 2))]
    planned = planned_bytes(sizes, 15, 256, "head", lambda _: 13)
    assert planned is not None and planned.current == "masks=head"
    assert planned.sizes["head"] / 1e9 == pytest.approx(gigabytes, rel=0.05)
    assert "104 bytes a mask" in planned.note and not planned_bytes(sizes, 15, 256, "box", len).note  # type: ignore[union-attr]
    assert planned_bytes([((360, 640), 79)], 15, 256, "head", len) is None


def test_planned_bytes_are_those_of_the_arrays() -> None:
    own = make_tracker(masks="none")
    video = scene(5)
    tracks = own.track(video, expressions(*TEXTS))
    planned = own.planned_bytes([VideoSize(video.size, 5, TEXTS)])
    arrays = [tracks.tokens, tracks.presence, *tracks.features.values()]
    assert planned is not None and planned.sizes["none"] - tracks.presence.size == sum(array.nbytes for array in arrays)


def test_the_budget_knows_the_texts_of_the_split(tmp_path: Path) -> None:
    work = TrackWork(SCENE, tmp_path, "train", "gdino-queries", {"checkpoint": shared_upstream(), "masks": "box", **SMALL})
    with pytest.warns(UserWarning, match="cut to 32 tokens"):
        used = check_budget(work, [(work.source, v) for v in work.source.video_ids()], 10**9)
    assert 4 * 9 * 3 * 128 < used < 10**6


def test_planned_memory_is_bounded() -> None:
    own = make_tracker()
    planned = [own.planned_memory((360, 640), frames) for frames in (10, 2_000, 20_000)]
    assert planned[0] < planned[1]
    # Beyond the maps that stay in memory, only the tracks themselves grow.
    per_frame = (own.planned_memory((360, 640), 2_000_000) - own.planned_memory((360, 640), 1_000_000)) / 1e6
    assert per_frame < 100_000
