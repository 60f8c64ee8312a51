"""What a cache stores under each profile, its size, and the fit of the low-rank basis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from odd_videos import SIZE, write_split
from rich.filesize import decimal
from tiny_vita import CHANNELS, SMALL, shared_checkpoint

from rvos_cache.cli import cli
from rvos_cache.contracts.scene import make_scene as scene
from rvos_cache.errors import InputError
from rvos_cache.shapes import write_shapes
from rvos_cache.trackers.mask2former.spool import Spool, SpooledFrames
from rvos_cache.trackers.vita import HeadSizes, VitaSettings, VitaTracker
from rvos_cache.trackers.vita.basis import Basis, Moments, fit_basis
from rvos_cache.trackers.vita.fit import agreement, fit_on_videos
from rvos_cache.trackers.vita.profiles import profile_bytes, video_bytes

pytestmark = pytest.mark.slow  # whole runs; left to test-all

PAPER = HeadSizes(
    channels=256, map_channels=256, mask_channels=256, frame_queries=100, video_queries=100, classes=25, hidden=2048,
    encoder_layers=6, decoder_layers=3,
)  # fmt: skip


def tracker(**settings: Any) -> VitaTracker:
    return VitaTracker(VitaSettings(checkpoint=shared_checkpoint(), **SMALL, **settings))


@pytest.fixture
def basis(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    w, v = (rng.normal(size=(CHANNELS, 5)).astype(np.float32) for _ in range(2))
    Basis(w, v).save(tmp_path / "basis.safetensors")
    return tmp_path / "basis.safetensors"


def features(vita: VitaTracker, frames: int = 7) -> dict[str, NDArray[Any]]:
    tracks = vita.track(scene(frames, True)[0], ())
    return {name: value if isinstance(value, np.ndarray) else np.stack(list(value)) for name, value in tracks.features.items()}


def test_what_each_profile_stores_of_the_mask_features(basis: Path) -> None:
    exact = features(tracker(profile="exact"))["f_mask"]
    some = features(tracker(profile="frames", keep_every=3))
    assert some["mask_frames"].tolist() == [0, 3, 6] and np.array_equal(some["f_mask"], exact[::3])
    low = features(tracker(profile="low_rank", basis=str(basis)))
    w, v = Basis.load(basis).w, low["mask_basis"]
    assert low["f_mask"].shape == (*exact.shape[:3], 5) and np.allclose(low["f_mask"], exact.astype(np.float32) @ w, atol=1e-2)
    assert np.array_equal(v, Basis.load(basis).v)
    assert "f_mask" not in features(tracker())


@pytest.mark.parametrize("profile", ["exact", "frames", "low_rank", "selection_only"])
def test_planned_bytes_are_those_of_the_arrays(profile: str, basis: Path) -> None:
    settings = {"profile": profile, "max_tracks": 4, **({"basis": str(basis)} if profile == "low_rank" else {})}
    vita = tracker(**settings)
    tracks = vita.track(scene(7, True)[0], ())
    planned = video_bytes(vita.settings, vita.head.sizes, (41, 63), 7, rank=5)
    arrays = {name: value if isinstance(value, np.ndarray) else np.stack(list(value)) for name, value in tracks.features.items()}
    assert len(tracks.origin) == 4
    assert {name: planned[name] for name in arrays} == {name: value.nbytes for name, value in arrays.items()}
    assert planned["tokens"] == tracks.tokens.nbytes and planned["presence"] == tracks.presence.nbytes
    assert set(planned) == {*arrays, "tokens", "presence", "mask_rle"}


def test_planned_bytes_of_mevis_are_the_published_estimate() -> None:
    """79 frames of 16:9, the mean of MeViS, and all its 2,006 videos: 621.3 MB and 1,246 GB of mask features, 4.04 MB of
    frame queries for Nf = 100; rank 64 takes a quarter, every second frame half."""
    settings = VitaSettings(checkpoint="x", profile="exact")
    one = video_bytes(settings, PAPER, (720, 1280), 79)
    assert round(one["f_mask"] / 1e6, 1) == 621.3 and round(one["q_f"] / 1e6, 2) == 4.04
    assert round(one["q_v"] / 1e6, 3) == 0.102 and round(one["logits"] / 1e6, 2) == 0.01
    total = profile_bytes(settings, PAPER, [((720, 1280), 79)] * 2006)
    other_arrays = total["selection_only"]
    assert round((total["exact"] - other_arrays) / 1e9) == 1246 and round((total["low_rank"] - other_arrays) / 1e9) == 312
    assert round((total["frames"] - other_arrays) / 1e9) == 631
    assert other_arrays < 12e9


def test_a_tracker_plans_all_profiles_at_once(basis: Path) -> None:
    videos = [((41, 63), 7), ((30, 60), 3)]
    vita = tracker(profile="low_rank", basis=str(basis))
    planned = vita.planned_bytes(videos)
    assert (planned.setting, planned.value) == ("profile", "low_rank")
    sizes = planned.sizes
    for profile, total in sizes.items():
        settings = vita.settings.model_copy(update={"profile": profile})
        assert total == sum(sum(video_bytes(settings, vita.head.sizes, *v, rank=5).values()) for v in videos)
    assert sizes["exact"] > sizes["frames"] > sizes["low_rank"] > sizes["selection_only"]
    # Without a basis, rank 64 is planned, or the number of channels if that is less: then only the basis adds bytes.
    unfitted = tracker().planned_bytes(videos).sizes
    assert unfitted["low_rank"] > sizes["low_rank"]
    assert unfitted["low_rank"] - unfitted["exact"] == len(videos) * CHANNELS * CHANNELS * 4


def test_the_command_shows_every_profile_and_refuses_a_budget_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise AssertionError("a video was extracted")

    monkeypatch.setattr(VitaTracker, "track", run)
    write_split(tmp_path / "valid_u", {"a": (7, True, {"0": ("the red square", [0])})})
    needed = tracker(profile="exact").planned_bytes([(SIZE, 7)]).sizes
    source = ["--dataset", "mevis", "--root", str(tmp_path), "--split", "valid_u", "--tracker", "vita"]
    settings = {"checkpoint": shared_checkpoint(), **SMALL, "profile": "exact"}
    options = [*source, *(w for k, v in settings.items() for w in ("--set", f"{k}={v}")), "--budget", str(needed["exact"] - 1)]
    for command in (["plan"], ["extract", "--out", str(tmp_path / "c.zarr")]):
        result = CliRunner().invoke(cli, [*command, *options])
        assert isinstance(result.exception, InputError), result.output
        assert "these fit: profile=frames (" in str(result.exception) and "profile=exact needs " in str(result.exception)
        lines = [f"profile={name}: {decimal(size, precision=2)}" for name, size in needed.items()]
        lines[0] += ", this run"
        assert result.output.splitlines() == (lines if command == ["plan"] else [])
    assert not (tmp_path / "c.zarr").exists()


def random_moments(rng: np.random.Generator, channels: int) -> NDArray[np.float64]:
    root = rng.normal(size=(channels, channels)) * np.geomspace(1, 0.01, channels)
    return root @ root.T


def loss(basis: Basis, features: NDArray[np.float64], embeddings: NDArray[np.float64]) -> float:
    """E (eᵀF − eᵀ V Wᵀ F)² of independent e and F with these second moments: tr(Σ_e D Σ_F Dᵀ), D = I − V Wᵀ."""
    d = np.eye(len(features)) - basis.v.astype(np.float64) @ basis.w.T.astype(np.float64)
    return float(np.trace(embeddings @ d @ features @ d.T))


def test_the_basis_has_the_least_error_of_its_rank() -> None:
    """By Eckart and Young no matrix of rank r has an error below the sum of the other squared singular values of Σ_e^½ Σ_F^½."""
    rng = np.random.default_rng(0)
    features, embeddings = random_moments(rng, 12), random_moments(rng, 12)
    roots = [u @ np.diag(np.sqrt(np.maximum(s, 0))) @ u.T for s, u in map(np.linalg.eigh, (embeddings, features))]
    tail = np.linalg.svd(roots[0] @ roots[1], compute_uv=False) ** 2
    for rank in (1, 4, 9):
        error = loss(fit_basis(features, embeddings, rank, ridge=1e-12), features, embeddings)
        assert np.isclose(error, tail[rank:].sum(), rtol=1e-2, atol=1e-6 * tail.sum())
        # The principal components of the features ignore which directions the embeddings use.
        top = np.linalg.eigh(features)[1][:, ::-1][:, :rank].astype(np.float32)
        assert error < loss(Basis(top, top), features, embeddings)
    assert loss(fit_basis(features, embeddings, 12), features, embeddings) < 1e-6 * tail.sum()


def test_directions_without_variance_stay_bounded() -> None:
    features, embeddings = np.diag([1.0, 1, 0, 0]), np.diag([1.0, 0, 1, 0])
    basis = fit_basis(features, embeddings, 2)
    assert np.isfinite(basis.w).all() and np.isfinite(basis.v).all()
    assert np.abs(basis.w).max() < 200 and loss(basis, features, embeddings) < 1e-2


def test_moments_are_those_of_all_vectors_at_once() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float16)
    moments = Moments(3)
    for batch in (rows[:7], rows[7:8], rows[8:]):
        moments.add(batch)
    assert np.allclose(moments.mean(), rows.astype(np.float64).T @ rows.astype(np.float64) / 50, rtol=1e-5)
    with pytest.raises(ValueError, match="no vectors"):
        Moments(3).mean()


def test_a_full_basis_gives_the_exact_masks_and_a_smaller_one_nearly() -> None:
    vita = tracker()
    videos = [scene(7, True)[0], scene(3, True, (30, 60))[0]]
    ious = {rank: agreement(vita, fit_on_videos(vita, videos, rank), videos) for rank in (1, 8, CHANNELS)}
    assert ious[CHANNELS] > 0.99 and ious[1] < ious[8] <= ious[CHANNELS]


def test_an_impossible_rank_and_an_empty_list_of_videos_are_refused() -> None:
    with pytest.raises(InputError, match=f"rank 33: the mask features have {CHANNELS} channels"):
        fit_on_videos(tracker(), [], 33)
    with pytest.raises(InputError, match="no videos"):
        fit_on_videos(tracker(), [], 3)


@pytest.mark.parametrize("content", [None, b"", b"nonsense" * 20])
def test_a_file_that_is_not_a_basis_is_an_error_of_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"b\.safetensors: .*; make it with rvos-cache fit-vita-basis") as caught:
        Basis.load(path)
    assert "\n" not in str(caught.value)


def test_tensors_that_are_not_a_basis_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for tensors in ({"w": np.ones((4, 2), np.float32)}, {"w": np.ones((4, 2), np.float32), "v": np.ones((4, 3), np.float32)}):
        save_file(tensors, tmp_path / "b.safetensors")
        with pytest.raises(InputError, match="not a basis of mask features"):
            Basis.load(tmp_path / "b.safetensors")


def test_another_basis_is_another_cache(basis: Path, tmp_path: Path) -> None:
    loaded = Basis.load(basis)
    Basis(loaded.w, loaded.v * 2).save(tmp_path / "other.safetensors")
    a, b = (tracker(profile="low_rank", basis=str(p)).weight_hashes() for p in (basis, tmp_path / "other.safetensors"))
    assert a["basis"] != b["basis"] and a["vita_head.safetensors"] == b["vita_head.safetensors"]


def test_the_command_fits_a_basis_that_extraction_takes(tmp_path: Path) -> None:
    write_shapes(tmp_path / "data", 5, 0)
    out = tmp_path / "basis.safetensors"
    arguments = ["fit-vita-basis", "--dataset", "mevis", "--root", str(tmp_path / "data"), "--split", "train"]
    arguments += [w for k, v in {"checkpoint": shared_checkpoint(), **SMALL}.items() for w in ("--set", f"{k}={v}")]
    arguments += ["--videos", "2", "--check", "1", "--rank", "4", "--out", str(out)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "rank 4; mean IoU with the exact masks 0." in result.output and "on 1 other videos" in result.output
    assert tracker(profile="low_rank", basis=str(out)).basis.rank == 4  # type: ignore[union-attr]
    repeated = CliRunner().invoke(cli, arguments)
    assert isinstance(repeated.exception, InputError) and str(out) in str(repeated.exception)


def test_a_spool_returns_its_frames_from_memory_and_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.random.default_rng(0).normal(size=(9, 4, 5, 3)).astype(np.float16)
    for limit in (1 << 20, 100):
        monkeypatch.setattr("rvos_cache.trackers.mask2former.spool.IN_MEMORY", limit)
        spool = Spool((4, 5, 3), "float16")
        for batch in (frames[:4], frames[4:5], frames[5:]):
            spool.append(batch)
            assert np.array_equal(spool[0], frames[0])
        assert len(spool) == 9 and np.array_equal(np.stack([spool[t] for t in range(9)]), frames)
        some = SpooledFrames(spool, range(1, 9, 3), 3)
        # Twice, at the same time, and the copies may be changed.
        for first, second, expected in zip(some, some, frames[1::3], strict=True):
            assert np.array_equal(first, expected) and np.array_equal(second, expected)
            first[:] = 0
        assert some.shape == (3, 4, 5, 3) == np.stack(list(some)).shape and some.dtype == np.float16
        with pytest.raises(IndexError):
            spool[9]
        with pytest.raises(ValueError, match="expected frames float16"):
            spool.append(frames.astype(np.float32))
