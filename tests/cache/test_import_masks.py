"""Import masks of another tracker: against the flow tracker's cache of the same masks, and PNGs against JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_videos import SIZE, Result
from PIL import Image
from sola_folder import VIDEOS, tracks_of, truth, write_data

from rvos_cache.exchange.import_masks import import_masks
from rvos_cache.extraction import extract
from rvos_cache.masks import RleMasks
from rvos_cache.store import TrackCache, content_digest, verify
from rvos_cache.types import VIDEO


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, and the tracks of its videos as PNGs (grey, one bit, 16 bits), png, and as RLE, json; none is changed."""
    out = tmp_path_factory.mktemp("masks")
    write_data(out / "data")
    for video in VIDEOS:
        for k, (name, masks) in enumerate(sorted(named(video).items())):
            folder = out / "png" / video / name
            folder.mkdir(parents=True)
            for t, mask in enumerate(masks):
                pixels = (mask * np.uint8(255), mask, mask * np.uint16(40_000), mask * np.uint8(1 + k))[k % 4]
                Image.fromarray(pixels).save(folder / f"{t:05d}.png")
        (out / "json").mkdir(exist_ok=True)
        (out / "json" / f"{video}.json").write_text(json.dumps({n: rles(m) for n, m in sorted(named(video).items())}))
    return out


def named(video: str) -> dict[str, np.ndarray]:
    return {f"track {anno_id}": masks for anno_id, masks in tracks_of(video).items()}


def rles(masks: np.ndarray) -> list[dict[str, Any] | None]:
    """COCO RLE of masks (T, H, W); null where a mask has no pixel."""
    encoded = RleMasks.from_dense(masks[None])
    return [{**rle, "counts": rle["counts"].decode()} if m.any() else None for rle, m in zip(encoded.row(0), masks)]


def import_cache(directory: Path, work: Path, out: Path, **options: Any) -> TrackCache:
    report = import_masks(directory, "mevis", work / "data", "valid_u", out, **options)
    assert not report.failed, report.failed
    return TrackCache(out)


def test_masks_are_those_of_the_pngs(work: Path, tmp_path: Path) -> None:
    cache = import_cache(work / "png", work, tmp_path / "c.zarr")
    assert list(verify(tmp_path / "c.zarr")) == []
    for video, frames in VIDEOS.items():
        record = cache.read(video)
        dense = np.stack([masks for _, masks in sorted(named(video).items())])
        assert np.array_equal(record.tracks.masks.dense(), dense)
        assert record.overlap is not None
        assert np.array_equal(record.overlap.inter, (dense[:, None] & truth(video)).sum((3, 4)))
        assert set(record.tracks.origin) == {"import"} and set(record.tracks.prompt.tolist()) == {VIDEO}
        assert record.tracks.tokens.shape == (len(dense), frames, 256)
        for n, masks in enumerate(dense):
            t = masks.sum((1, 2)).argmax()
            rows, columns = (np.flatnonzero(masks[t].any(axis)) for axis in (1, 0))
            box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert record.tracks.prompt_frame[n] == t and record.tracks.prompt_box[n].tolist() == box
        assert np.array_equal(record.tracks.presence > 0, dense.any((2, 3)))
        assert cache.folder(video).attributes["provenance"]["tracks"] == sorted(named(video))


@pytest.mark.usefixtures("on_cpu")  # its processes are forked
def test_pngs_and_json_give_the_same_cache(work: Path, tmp_path: Path) -> None:
    import_cache(work / "png", work, tmp_path / "a.zarr")
    import_cache(work / "json", work, tmp_path / "b.zarr", jobs=2)
    assert content_digest(tmp_path / "a.zarr") == content_digest(tmp_path / "b.zarr")


def test_the_flow_trackers_own_masks_get_its_own_tokens(work: Path, tmp_path: Path) -> None:
    extract("mevis", work / "data", "valid_u", "flow", tmp_path / "flow.zarr")
    flow = TrackCache(tmp_path / "flow.zarr")
    (tmp_path / "out").mkdir()
    for video in VIDEOS:
        masks = flow.masks(video)
        assert masks.shape[0] > 1
        content = {f"{k:03d}": rles(masks.dense([k])[0]) for k in range(masks.shape[0])}
        (tmp_path / "out" / f"{video}.json").write_text(json.dumps(content))
    cache = import_cache(tmp_path / "out", work, tmp_path / "c.zarr")
    for video in VIDEOS:
        assert np.array_equal(cache.tokens(video), flow.tokens(video))
        assert (cache.presence(video) >= flow.presence(video)).all()
    assert cache.card.differences(flow.card) == ["settings.masks"]


def test_palettes_are_read_by_their_colours(work: Path, tmp_path: Path) -> None:
    """A program that writes small palettes may number white as 0."""
    shutil.copytree(work / "png", tmp_path / "in")
    for path in (tmp_path / "in").rglob("*.png"):
        mask = np.asarray(Image.open(path)) > 0
        Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB").quantize(2).save(path)
    assert Image.open(next((tmp_path / "in").rglob("*.png"))).mode == "P"
    import_cache(work / "png", work, tmp_path / "a.zarr")
    import_cache(tmp_path / "in", work, tmp_path / "b.zarr")
    assert content_digest(tmp_path / "a.zarr") == content_digest(tmp_path / "b.zarr")


def test_a_list_of_masks_of_frames_that_sort_otherwise_as_text_is_told(tmp_path: Path) -> None:
    frames = tmp_path / "data/videos/v"
    frames.mkdir(parents=True)
    for t in range(9, 12):
        Image.fromarray(np.full((*SIZE, 3), t, np.uint8)).save(frames / f"{t}.png")
    (tmp_path / "data/expressions.json").write_text('{"v": ["a square"]}')
    (tmp_path / "v.json").write_text(json.dumps({"a": [None, None, None]}))
    with pytest.warns(UserWarning, match=r"v\.json: its masks are read in natural order of the frames; sorted as text, 9 would"):
        report = import_masks(tmp_path, "plain", tmp_path / "data", "all", tmp_path / "c.zarr")
    assert report.done == ["v"]


def test_a_video_without_a_track(work: Path, tmp_path: Path) -> None:
    """An empty folder, and an empty object; hidden files are ignored."""
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/a/.DS_Store").touch()
    (tmp_path / "in/b.json").write_text("{}")
    cache = import_cache(tmp_path / "in", work, tmp_path / "c.zarr")
    assert [cache.info(video).tracks for video in VIDEOS] == [0, 0]
    assert cache.tokens("b").shape == (0, 9, 256)


PNG = "a/track 7/00002.png"
Damage = tuple[Callable[[Path], object], str, str]


def save_png(pixels: np.ndarray) -> Callable[[Path], object]:
    return lambda d: Image.fromarray(pixels).save(d / PNG)


FAULTS: dict[str, Damage] = {
    "no PNG of a frame": (lambda d: (d / PNG).unlink(), PNG, "not found (1 of 6 frames lack one)"),
    "a PNG of no frame": (lambda d: shutil.copy(d / PNG, d / "a/track 7/00006.png"), "a/track 7/00006.png", "no such frame"),
    "PNG of another size": (save_png(np.zeros((48, 32), np.uint8)), PNG, "the mask is (48, 32), its frame"),
    "PNG of colours": (save_png(np.zeros((*SIZE, 3), np.uint8)), PNG, "this is RGB"),
    "PNG cut short": (lambda d: (d / PNG).write_bytes((d / PNG).read_bytes()[:60]), PNG, "not a whole PNG"),
    "a file among tracks": (lambda d: shutil.copy(d / PNG, d / "a/00002.png"), "a/00002.png", "expected a folder per track"),
    "no video": (lambda d: shutil.rmtree(d / "a"), "a", "not found, and no a.json"),
    "both forms": (lambda d: (d / "a.json").write_text("{}"), "a.json", "only one of them can be this video"),
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_bad_folder_is_one_line_and_stops_no_other(work: Path, rvos: Callable[..., Result], tmp_path: Path, fault: str) -> None:
    damage, file, message = FAULTS[fault]
    shutil.copytree(work / "png", tmp_path / "in")
    damage(tmp_path / "in")
    arguments = ("import-masks", tmp_path / "in", "--dataset", "mevis", "--root", work / "data", "--split", "valid_u")
    code, stderr = rvos(*arguments, "--out", tmp_path / "c.zarr")
    lines = stderr.splitlines()
    assert code == 1 and len(lines) == 2, stderr
    assert lines[0].startswith(f"failed a: {tmp_path / 'in' / file}: ") and message in lines[0], stderr
    shutil.rmtree(tmp_path / "in")
    shutil.copytree(work / "png", tmp_path / "in")
    assert rvos(*arguments, "--out", tmp_path / "c.zarr") == (0, "")
    import_cache(work / "json", work, tmp_path / "d.zarr")
    assert content_digest(tmp_path / "c.zarr") == content_digest(tmp_path / "d.zarr")


RLES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "one frame less": (lambda h: h["track 7"].pop(), "'track 7': expected a list of 6 masks, found 5 masks; write"),
    "no list": (lambda h: h.update({"track 7": {}}), "found dict"),
    "mask of another size": (lambda h: h["track 7"][3].update(size=[9, 9]), "'track 7', frame 3: the mask is (9, 9)"),
    "mask that does not fill": (lambda h: h["track 7"][3].update(counts=[5]), "'track 7', frame 3: the mask's counts"),
    "mask of damaged bytes": (lambda h: h["track 7"][3].update(counts="~~"), "'track 7', frame 3: the mask's run-length bytes"),
    "mask of text": (lambda h: h["track 7"].__setitem__(3, h["track 7"][3]["counts"]), "frame 3: a mask is COCO RLE"),
    "counts of null": (lambda h: h["track 7"][3].update(counts=None), "'track 7', frame 3: the mask's counts are text or a list"),
    "counts of printed bytes": (
        lambda h: h["track 7"][3].update(counts=str(h["track 7"][3]["counts"].encode())),
        "'track 7', frame 3: the mask's counts are bytes as Python prints them",
    ),
    "mask that is a number": (lambda h: h["track 7"].__setitem__(3, 1), "found int"),
    "id that leaves the folder": (lambda h: h.update({"../x": h["track 7"]}), "the id '../x' cannot name a folder"),
    "id with a slash": (lambda h: h.update({"a/b": h["track 7"]}), "the id 'a/b' cannot name a folder"),
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(RLES))
def test_a_bad_file_is_named(work: Path, tmp_path: Path, fault: str) -> None:
    change, message = RLES[fault]
    content = json.loads((work / "json/a.json").read_text())
    change(content)
    assert is_refused(work, tmp_path, json.dumps(content), message)


@pytest.mark.parametrize(
    ("text", "message"), [('{"0": [', "not whole JSON"), ("[]", "found list"), ('{"0": [], "0": []}', "a key is there twice")]
)
def test_a_file_that_is_no_object_is_named(work: Path, tmp_path: Path, text: str, message: str) -> None:
    assert is_refused(work, tmp_path, text, message)


def is_refused(work: Path, tmp_path: Path, text: str, message: str) -> bool:
    shutil.copytree(work / "json", tmp_path / "in")
    (tmp_path / "in/a.json").write_text(text)
    report = import_masks(tmp_path / "in", "mevis", work / "data", "valid_u", tmp_path / "c.zarr")
    assert report.done == ["b"] and report.failed["a"].startswith(str(tmp_path / "in/a.json")), report.failed
    return message in report.failed["a"]


def test_a_folder_that_is_not_there(work: Path, rvos: Callable[..., Result], tmp_path: Path) -> None:
    arguments = ("--dataset", "mevis", "--root", work / "data", "--split", "valid_u", "--out", tmp_path / "c.zarr")
    code, stderr = rvos("import-masks", tmp_path / "none", *arguments)
    assert code == 1 and "none: not found; give the folder" in stderr and not (tmp_path / "c.zarr").exists()
