"""Import of SOLA's folders: one error line for every fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_videos import EXPRESSIONS as VIDEO_EXPRESSIONS
from odd_videos import Result
from sola_folder import VIDEOS, write_data, write_tracks

from rvos_cache.errors import InputError
from rvos_cache.exchange.import_sola import import_sola
from rvos_cache.store import TrackCache, content_digest

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


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], object]:
    def edit(path: Path, tokens: Path) -> None:
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return edit


def saved(value: Any, **options: Any) -> Callable[[Path, Path], object]:
    return lambda path, tokens: np.save(tokens, value, **options)


def broken_at(frame: int) -> np.ndarray:
    tokens = np.zeros((6, 256), np.float32)
    tokens[frame, 3] = np.nan
    return tokens


JSON, NPY = "sam2_masklets/a/00007.json", "sam2_object_tokens/a/00007.npy"
Damage = tuple[Callable[[Path, Path], object], str, str]
FAULTS: dict[str, Damage] = {
    "one frame less": (edited(lambda h: h["rle"].pop()), JSON, "masks of 5 frames, the video has 6"),
    "mask of another size": (edited(lambda h: h["rle"][2].update(size=[48, 32])), JSON, "frame 2: the mask is (48, 32)"),
    "mask cut short": (edited(lambda h: h["rle"][2].update(counts="0a")), JSON, "frame 2: the mask's run-length bytes"),
    "mask that is null": (edited(lambda h: h["rle"].__setitem__(4, None)), JSON, "frame 4: null"),
    "no masks": (edited(lambda h: h.pop("rle")), JSON, "expected an object with anno_id, rle"),
    "JSON cut short": (lambda p, t: p.write_bytes(p.read_bytes()[:400]), JSON, "not whole JSON"),
    "JSON of something else": (lambda p, t: p.write_text("[1]"), JSON, "expected an object"),
    "NaN": (edited(lambda h: h["iou"].update({"0": float("nan")})), JSON, "NaN"),
    "IoU of 7": (edited(lambda h: h["iou"].update({"0": 7})), JSON, "from 0 to 1"),
    "id of another file": (edited(lambda h: h.update(anno_id=8)), JSON, "found 8"),
    "id that leaves the folder": (edited(lambda h: h.update(anno_id="../../x")), JSON, "found '../../x'"),
    "no prompt type": (edited(lambda h: h.pop("prompt_type")), JSON, "prompt_type"),
    "no tokens": (lambda p, t: t.unlink(), NPY, "not found"),
    "no masks for tokens": (lambda p, t: p.unlink(), JSON, "not found"),
    "tokens of one frame less": (saved(np.zeros((5, 256), np.float32)), NPY, "expected float32 (6, 256)"),
    "tokens of another width": (saved(np.zeros((6, 128), np.float32)), NPY, "found float32 (6, 128)"),
    "tokens of another type": (saved(np.zeros((6, 256))), NPY, "found float64"),
    "tokens that are not numbers": (saved(broken_at(5)), NPY, "NaN"),
    "pickled objects": (saved(np.array([{}, None], object), allow_pickle=True), NPY, "pickled objects are never loaded"),
    "tokens cut short": (lambda p, t: t.write_bytes(t.read_bytes()[:-9]), NPY, "not an array of numbers"),
    "tokens without a byte": (lambda p, t: t.write_bytes(b""), NPY, "not an array of numbers"),
    "an archive": (lambda p, t: np.savez(t.open("wb"), x=np.zeros(1)), NPY, "found an archive"),
    "a folder for the video": (lambda p, t: (p.parent / "0").mkdir(), "sam2_masklets/a", "folder"),
    "no masks of the video": (lambda p, t: shutil.rmtree(p.parent), "sam2_masklets/a", "not found, so it was never tracked"),
    "no tokens of the video": (lambda p, t: shutil.rmtree(t.parent), "sam2_object_tokens/a", "not found, the tokens of"),
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_bad_video_is_one_line_and_stops_no_other(work: Path, rvos: Callable[..., Result], tmp_path: Path, fault: str) -> None:
    damage, file, message = FAULTS[fault]
    inner = "sam2_tracks/grid_tracks/mevis/valid_u"
    shutil.copytree(work / "sola" / inner, tmp_path / inner)
    damage(tmp_path / inner / JSON, tmp_path / inner / NPY)
    arguments = ("import-sola", tmp_path, "--dataset", "mevis", "--root", work / "data", "--split", "valid_u")
    code, stderr = rvos(*arguments, "--out", tmp_path / "c.zarr")
    lines = [line for line in stderr.splitlines() if not line.startswith("stored IoU")]
    assert code == 1 and len(lines) == 2, stderr
    assert lines[0].startswith("failed a: ") and str(tmp_path / inner / file) in lines[0] and message in lines[0], stderr
    assert TrackCache(tmp_path / "c.zarr").video_ids() == ("b",)
    shutil.rmtree(tmp_path / inner)
    shutil.copytree(work / "sola" / inner, tmp_path / inner)
    assert rvos(*arguments, "--out", tmp_path / "c.zarr")[0] == 0
    assert content_digest(tmp_path / "c.zarr") == content_digest(work / "grid.zarr")


EXPRESSIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an expression that the split lacks": (lambda a: (a / "9").mkdir(), "no expression '9'"),
    "an expression that was not tracked": (lambda a: shutil.rmtree(a / "2"), "expression 2 was never tracked"),
    "tracks of the video": (lambda a: shutil.copy(a / "0/00007.json", a / "00007.json"), "belongs to no expression"),
    "tracks of the video alone": (
        lambda a: [(a / "00007.json").write_text("{}"), *(shutil.rmtree(a / e) for e in VIDEO_EXPRESSIONS)],
        "read with --tracks grid",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(EXPRESSIONS))
def test_folders_of_expressions_are_those_of_the_split(work: Path, tmp_path: Path, fault: str) -> None:
    damage, message = EXPRESSIONS[fault]
    shutil.copytree(work / "sola", tmp_path / "sola")
    damage(tmp_path / "sola/sam2_tracks/gdino_tracks/mevis/valid_u/sam2_masklets/a")
    imported = import_sola(tmp_path / "sola", "mevis", work / "data", "valid_u", tmp_path / "c.zarr", tracks="gdino")
    assert imported.report.done == ["b"] and message in imported.report.failed["a"]


@pytest.mark.parametrize(
    ("inner", "options", "message"),
    [
        ("nothing", {}, "no tracks in grid_tracks/mevis/valid_u"),
        ("sola", {"split": "train"}, "train"),
        ("sola", {"tracks": "gt", "lose": "sam2_object_tokens"}, "no folder sam2_object_tokens"),
    ],
)
def test_a_folder_that_is_no_sam2_tracks(work: Path, tmp_path: Path, inner: str, options: dict[str, str], message: str) -> None:
    if "lose" in options:
        shutil.copytree(work / "sola", tmp_path / "sola")
        shutil.rmtree(tmp_path / "sola/sam2_tracks/gt_tracks/mevis/valid_u" / options["lose"])
    base = tmp_path if "lose" in options else work
    with pytest.raises(InputError, match=message):
        import_sola(
            base / inner, "mevis", work / "data", options.get("split", "valid_u"), tmp_path / "c.zarr",
            tracks=options.get("tracks", "grid"),
        )  # fmt: skip
    assert not (tmp_path / "c.zarr").exists()
