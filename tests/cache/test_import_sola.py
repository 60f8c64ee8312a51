"""Import and export of SOLA's folders, which are written here as its scripts write them."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_videos import EXPRESSIONS, Result
from pycocotools import mask as coco
from sola_folder import PROMPT_TYPES, VIDEOS, ratios, tokens_of, tracks_of, truth, write_data, write_tracks
from test_dataset_contract import SAMPLES

from rvos_cache.datasets import open_dataset
from rvos_cache.exchange.export_sola import export_sola
from rvos_cache.exchange.import_masks import import_masks
from rvos_cache.exchange.import_sola import IouDifference, compare_iou, import_sola
from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.store import CacheWriter, TrackCache, content_digest, verify
from rvos_cache.store import write_tracks as write_record
from rvos_cache.types import VIDEO, GroundTruth
from rvos_select.data.caches import TrackSource, candidates

pytestmark = pytest.mark.slow
KINDS = ("grid", "gdino", "gt")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, sola/sam2_tracks of all kinds, and their caches <kind>.zarr; no test changes it."""
    out = tmp_path_factory.mktemp("sola")
    write_data(out / "data")
    for kind in KINDS:
        write_tracks(out / "sola", kind)
        report = import_sola(out / "sola", "mevis", out / "data", "valid_u", out / f"{kind}.zarr", tracks=kind).report
        assert sorted(report.done) == sorted(VIDEOS) and not report.failed
    return out


def track_keys(video: str, kind: str) -> list[tuple[str, int]]:
    """Expression ("" for none) and anno_id of each track, in the order that SOLA's loader takes: by file name."""
    groups = list(EXPRESSIONS) if kind == "gdino" else [""]
    return [(group, anno_id) for group in groups for anno_id in sorted(tracks_of(video, group))]


@pytest.mark.parametrize("kind", KINDS)
def test_masks_tokens_and_counts_are_those_of_the_files(work: Path, kind: str) -> None:
    cache = TrackCache(work / f"{kind}.zarr")
    assert (cache.card.producer, cache.card.dtype, cache.card.channels, cache.card.label_iou) == ("sola", "float32", 256, 0.7)
    assert cache.card.training_only == (kind == "gt") and cache.card.settings == {"tracks": kind}
    assert list(verify(work / f"{kind}.zarr")) == []
    for video in VIDEOS:
        record, keys = cache.read(video), track_keys(video, kind)
        tracks, overlap = record.tracks, record.overlap
        dense = np.stack([tracks_of(video, group)[anno_id] for group, anno_id in keys])
        assert np.array_equal(tracks.masks.dense(), dense)
        assert tracks.tokens.dtype == np.float32
        assert np.array_equal(tracks.tokens, np.stack([tokens_of(video, *key) for key in keys]))
        assert np.array_equal(tracks.presence, dense.any((2, 3)))
        assert set(tracks.origin) == {{"grid": "grid", "gdino": "box", "gt": "gt"}[kind]}
        assert tracks.prompt.tolist() == [list(EXPRESSIONS).index(group) if group else VIDEO for group, _ in keys]
        assert overlap is not None
        assert np.array_equal(overlap.inter, (dense[:, None] & truth(video)).sum((3, 4)))
        assert np.array_equal(overlap.area, dense.sum((2, 3)))


def test_tracks_of_a_sentence_are_candidates_of_no_other(work: Path) -> None:
    source = TrackSource([work / "grid.zarr", work / "gdino.zarr"])
    info = source.info("a")
    shared, per_expression = len(tracks_of("a")), len(tracks_of("a", "0"))
    allowed = {e: np.flatnonzero(candidates(info, e)).tolist() for e in EXPRESSIONS}
    all_shared = list(range(shared))
    assert allowed["0"] == all_shared + list(range(shared, shared + per_expression))
    assert allowed["1"] == all_shared + list(range(shared + per_expression, shared + 2 * per_expression))
    assert allowed["2"] == all_shared


@pytest.mark.parametrize("kinds", [("grid",), ("gdino",), ("gt",), KINDS])
def test_export_gives_the_same_files(work: Path, tmp_path: Path, kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        export_sola(work / f"{kind}.zarr", tmp_path)
        inner = Path("sam2_tracks") / f"{kind}_tracks/mevis/valid_u"
        folders = (work / "sola" / inner, tmp_path / inner)
        original, exported = ({p.relative_to(folder): p for p in folder.rglob("*")} for folder in folders)
        assert original.keys() == exported.keys()
        for name, path in original.items():
            assert path.is_dir() or path.read_bytes() == exported[name].read_bytes(), name
        import_sola(tmp_path, "mevis", work / "data", "valid_u", tmp_path / f"{kind}.zarr", tracks=kind)
        assert content_digest(tmp_path / f"{kind}.zarr") == content_digest(work / f"{kind}.zarr")


def test_stored_iou_is_compared_with_the_counts(work: Path) -> None:
    """At 540x960 it differs a little; SOLA's gt script works at full size, so only the rounding to float32 differs."""
    differences = {}
    for kind in KINDS:
        imported = import_sola(work / "sola", "mevis", work / "data", "valid_u", work / f"{kind}.zarr", tracks=kind)
        assert imported.report.done == []
        differences[kind] = imported.stored_iou
        distances, crossed = [], 0
        for video in VIDEOS:
            for group, anno_id in track_keys(video, kind):
                path = work / f"sola/sam2_tracks/{kind}_tracks/mevis/valid_u/sam2_masklets/{video}/{group}/{anno_id:05d}.json"
                stored = list(json.loads(path.read_text())["iou"].values())
                computed = [ratios(tracks_of(video, group)[anno_id], o)["iou"] for o in truth(video)]
                distances += np.abs(np.subtract(stored, computed)).tolist()
                crossed += sum((a > 0.7) != (b > 0.7) for a, b in zip(stored, computed))
        difference = differences[kind]
        assert difference is not None
        assert (difference.pairs, difference.crossed, difference.unmatched) == (len(distances), crossed, 0)
        assert difference.largest == pytest.approx(max(distances), abs=1e-6)
        assert difference.mean == pytest.approx(np.mean(distances), abs=1e-6)
    assert differences["gt"] is not None and differences["grid"] is not None
    assert differences["gt"].largest < 1e-6 < differences["grid"].largest < 0.1


def test_differences_by_hand() -> None:
    """Two tracks, one object, numbered within its video: IoU 1 and 1/2; one stored value crosses 0.7, one is of nobody."""
    masks = np.zeros((2, 1, 2, 4), bool)
    masks[:, :, 0, :2] = masks[1, :, 1, :2] = True
    object_masks = RleMasks.from_dense(masks[:1])
    ground_truth = GroundTruth(("v-1",), object_masks, np.ones(1, bool))
    overlap = count_overlap(RleMasks.from_dense(masks), ground_truth)
    fields: list[dict[str, Any]] = [{"iou": {"1": 0.9}}, {"iou": {"1": 0.8, "2": 0.1}}]
    difference = compare_iou("v", fields, ground_truth, overlap)
    assert (difference.pairs, difference.crossed, difference.unmatched) == (2, 1, 1)
    assert difference.largest == pytest.approx(0.3) and difference.mean == pytest.approx(0.2)
    combined = IouDifference.combine([difference, IouDifference(6, 0.5, 0.1, 2, 0), IouDifference()])
    assert (combined.pairs, combined.crossed, combined.unmatched, combined.largest) == (8, 3, 1, 0.5)
    assert combined.mean == pytest.approx((2 * 0.2 + 6 * 0.1) / 8)


@pytest.mark.usefixtures("on_cpu")  # its processes are forked
def test_the_command_prints_the_difference(work: Path, rvos: Callable[..., Result], tmp_path: Path) -> None:
    options = ("--dataset", "mevis", "--root", work / "data", "--split", "valid_u")
    code, stderr = rvos("import-sola", work / "sola/sam2_tracks", *options, "--out", tmp_path / "c.zarr", "--jobs", 2)
    assert code == 0 and stderr.count("\n") == 0 and stderr.startswith("stored IoU of 16 pairs")
    assert content_digest(tmp_path / "c.zarr") == content_digest(work / "grid.zarr")
    assert rvos("export-sola", tmp_path / "c.zarr", "--out", tmp_path / "back")[0] == 0
    code, stderr = rvos("export-sola", tmp_path / "c.zarr", "--out", tmp_path / "back")
    assert code == 1 and "is there already" in stderr
    code, stderr = rvos("import-sola", work / "sola", *options, "--tracks", "gt", "--out", tmp_path / "c.zarr")
    assert code == 1 and "settings.tracks" in stderr


def test_a_split_that_hides_its_ground_truth(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "data/valid_u", tmp_path / "data/valid")
    (tmp_path / "data/valid/mask_dict.json").unlink()
    content = json.loads((tmp_path / "data/valid/meta_expressions.json").read_text())
    for video in content["videos"].values():
        for expression in video["expressions"].values():
            del expression["anno_id"]
    (tmp_path / "data/valid/meta_expressions.json").write_text(json.dumps(content))
    base = write_tracks(tmp_path / "sola", "grid", "valid", labels=False)
    imported = import_sola(tmp_path / "sola", "mevis", tmp_path / "data", "valid", tmp_path / "c.zarr")
    assert imported.stored_iou is None and not imported.report.failed
    assert TrackCache(tmp_path / "c.zarr").read("a").overlap is None
    export_sola(tmp_path / "c.zarr", tmp_path / "back")
    name = "sam2_masklets/a/00007.json"
    assert (tmp_path / "back/sam2_tracks/grid_tracks/mevis/valid" / name).read_bytes() == (base / name).read_bytes()


def test_tracks_from_elsewhere_are_read_as_solas_loader_reads_them(work: Path, tmp_path: Path) -> None:
    """Without an import's record, as any tracker's cache is; dataloader.py takes a folder's JSONs by name, a token by anno_id."""
    shutil.copytree(work / "gdino.zarr", tmp_path / "c.zarr")
    plain = TrackCache(tmp_path / "c.zarr")
    for video in VIDEOS:
        plain.folder(video).attributes["provenance"].pop("sola")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rvos_cache.exchange.export_sola.TrackCache", lambda path: plain)
        (base,) = export_sola(tmp_path / "c.zarr", tmp_path)
    assert base == tmp_path / "sam2_tracks/gdino_tracks/mevis/valid_u"
    for number, video in enumerate(VIDEOS):
        for group in EXPRESSIONS:
            for index, (path, anno_id) in enumerate(
                zip(sorted((base / "sam2_masklets" / video / group).iterdir()), sorted(tracks_of(video, group)), strict=True)
            ):
                record = json.loads(path.read_text())
                assert (record["anno_id"], record["prompt_type"]) == (index, PROMPT_TYPES["gdino"])
                masks = tracks_of(video, group)[anno_id]
                assert np.array_equal(np.stack([coco.decode(rle) for rle in record["rle"]]), masks)
                tokens = np.load(base / "sam2_object_tokens" / video / group / f"{record['anno_id']:05d}.npy")
                assert tokens.dtype == np.float32 and np.array_equal(tokens, tokens_of(video, group, anno_id))
                for a, object_masks in enumerate(truth(video)):
                    for name, value in ratios(masks, object_masks).items():
                        assert record[name][str(2 * number + a)] == pytest.approx(value, abs=1e-6)


def test_tracks_of_both_kinds_go_to_their_own_folders(work: Path, tmp_path: Path) -> None:
    """One cache with tracks of the video and tracks of its sentences, as a tracker that reads sentences may write."""
    source = TrackCache(work / "gdino.zarr")
    record = source.read("b")
    prompt = record.tracks.prompt.copy()
    prompt[[1, 6]] = VIDEO
    writer = CacheWriter(tmp_path / "c.zarr", source.card)
    write_record(writer, replace(record, tracks=replace(record.tracks, prompt=prompt)))
    with pytest.warns(UserWarning, match="first a"):
        folders = export_sola(tmp_path / "c.zarr", tmp_path)
    files = {}
    for folder in folders:
        masklets = folder / "sam2_masklets/b"
        files[folder.parts[-3]] = sorted(str(path.relative_to(masklets)) for path in masklets.rglob("*.json"))
    assert files == {
        "grid_tracks": ["00000.json", "00001.json"],
        "gdino_tracks": [f"{e}/{n:05d}.json" for e in ("0", "1") for n in range(3)],
    }


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_dataset_is_exported_and_imported(name: str, tmp_path: Path) -> None:
    """The objects, a pixel to the left, as SOLA's files: the labels written are those counted on the way back, pair by pair."""
    sample, out = SAMPLES[name](tmp_path / "data"), tmp_path / "own.zarr"
    source = open_dataset(name, sample.root, sample.shown)
    for video_id in source.video_ids():
        ground_truth = source.ground_truth(video_id)
        assert ground_truth is not None
        moved = RleMasks.from_dense(np.roll(ground_truth.masks.dense(), -1, 3))
        rows = {str(a): [rle | {"counts": rle["counts"].decode()} for rle in moved.row(a)] for a in range(moved.shape[0])}
        (tmp_path / f"{video_id}.json").write_text(json.dumps(rows))
    assert not import_masks(tmp_path, name, sample.root, sample.shown, out).failed
    (base,) = export_sola(out, tmp_path)
    folder_name = {"ref-youtube-vos": "ref-ytbvos", "ref-davis17": "ref-davis"}.get(name, name)
    assert base == tmp_path / "sam2_tracks/grid_tracks" / folder_name / sample.shown
    imported = import_sola(tmp_path, name, sample.root, sample.shown, tmp_path / "c.zarr")
    assert not imported.report.failed and imported.stored_iou is not None
    original, back = TrackCache(out), TrackCache(tmp_path / "c.zarr")
    pairs = 0
    for video_id in original.video_ids():
        assert back.masks(video_id) == original.masks(video_id)
        assert np.array_equal(back.tokens(video_id), original.tokens(video_id))
        overlap = original.overlap(video_id)
        assert np.array_equal(back.overlap(video_id).inter, overlap.inter)
        pairs += overlap.inter.shape[0] * overlap.inter.shape[1]
    difference = imported.stored_iou
    assert (
        (difference.pairs, difference.crossed, difference.unmatched) == (pairs, 0, 0) and pairs > 0 and difference.largest < 1e-12
    )


def test_a_failed_export_leaves_nothing(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[Path] = []

    def save(path: Path, *rest: Any, **options: Any) -> None:
        paths.append(path)
        if len(paths) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("rvos_cache.exchange.sola_files.np.save", save)
    with pytest.raises(OSError, match="No space"):
        export_sola(work / "grid.zarr", tmp_path)
    assert len(paths) == 3 and not [p for p in tmp_path.rglob("*") if p.name not in ("sam2_tracks", "grid_tracks", "mevis")]


def test_an_export_to_a_full_disk_leaves_nothing(work: Path, tmp_path: Path) -> None:
    """Also where it is full by a few bytes at the end of a file of tokens, which NumPy itself does not see."""
    (base,) = export_sola(work / "grid.zarr", tmp_path / "whole")
    largest = max(path.stat().st_size for path in base.rglob("*.npy"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (largest - 1, largest // 2, 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                export_sola(work / "grid.zarr", tmp_path / "full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not [path for path in (tmp_path / "full").rglob("*") if path.is_file()]


def test_missing_videos_are_a_warning(work: Path, tmp_path: Path) -> None:
    options = ("mevis", work / "data", "valid_u")
    import_sola(work / "sola", *options, tmp_path / "c.zarr", limit=1)
    with pytest.warns(UserWarning, match="1 videos of the split are not in it and are left out; first b"):
        export_sola(tmp_path / "c.zarr", tmp_path)
    shutil.copytree(work / "sola", tmp_path / "more")
    for name in ("sam2_masklets", "sam2_object_tokens"):
        (tmp_path / "more/sam2_tracks/grid_tracks/mevis/valid_u" / name / "z").mkdir()
    with pytest.warns(UserWarning, match="1 videos are not of split valid_u and are left out; first z"):
        import_sola(tmp_path / "more", *options, tmp_path / "d.zarr")
    assert content_digest(tmp_path / "d.zarr") == content_digest(work / "grid.zarr")


def test_an_empty_folder_is_a_video_without_a_track(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "sola", tmp_path / "sola")
    for name in ("sam2_masklets", "sam2_object_tokens"):
        folder = tmp_path / "sola/sam2_tracks/grid_tracks/mevis/valid_u" / name / "a"
        shutil.rmtree(folder)
        folder.mkdir()
    assert not import_sola(tmp_path / "sola", "mevis", work / "data", "valid_u", tmp_path / "c.zarr").report.failed
    cache = TrackCache(tmp_path / "c.zarr")
    assert cache.info("a").tracks == 0 and cache.tokens("a").shape == (0, 6, 256)
    (base,) = export_sola(tmp_path / "c.zarr", tmp_path)
    assert (base / "sam2_masklets/a").is_dir() and (base / "sam2_object_tokens/a").is_dir()
