"""Videos as files: folders of images and video files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rvos_cache.errors import InputError
from rvos_cache.media.frames import VideoWriter, file_video, folder_video, open_video, order_fault, sort_frames


def write_film(path: Path, count: int, size: tuple[int, int] = (48, 64)) -> list[int]:
    """Write an mp4 of grey frames; returns their levels."""
    levels = [20 + 7 * t for t in range(count)]
    with VideoWriter(path, 5, size) as writer:
        for level in levels:
            writer.write(np.full((*size, 3), level, np.uint8))
    return levels


def level_of(frame: np.ndarray) -> int:
    return round(float(frame.mean()))


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (2, 2)])
def test_a_video_file_is_read_at_its_size(tmp_path: Path, size: tuple[int, int]) -> None:
    """Odd sides are padded to even ones."""
    levels = write_film(tmp_path / "a.mp4", 3, size)
    video = open_video(tmp_path / "a.mp4")
    assert video.size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert [level_of(video.read(t)) for t in range(len(video))] == pytest.approx(levels, abs=2)


def test_a_video_file_with_a_name_like_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    levels = write_film(Path("a: b?.mp4"), 1)
    video = open_video(Path("a: b?.mp4"))
    assert (len(video), video.frame_names, video.video_id) == (1, ("00000",), "a_ b_")
    assert level_of(video.read(0)) == pytest.approx(levels[0], abs=2)


@pytest.mark.parametrize("cache_bytes", [0, 3 * 48 * 64 * 3])
def test_any_order_reads_the_same_frames_from_little_memory(tmp_path: Path, cache_bytes: int) -> None:
    """With one or three frames in memory, against the same file with all frames in memory."""
    write_film(tmp_path / "a.mp4", 12)
    whole, part = file_video(tmp_path / "a.mp4", "a"), file_video(tmp_path / "a.mp4", "a", cache_bytes=cache_bytes)
    expected = [whole.read(t) for t in range(12)]
    order = [0, 1, 11, 10, 9, 3, 3, 0, *np.random.default_rng(0).integers(0, 12, 20).tolist()]
    for t in order:
        assert np.array_equal(part.read(t), expected[t]), t
    assert len({level_of(frame) for frame in expected}) == 12


def test_the_frames_in_memory_are_bounded(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4", 9)
    video = file_video(tmp_path / "a.mp4", "a", cache_bytes=4 * 48 * 64 * 3)
    cached = video.source.__self__.cached  # type: ignore[attr-defined]
    for t in (8, 0, 5):
        video.read(t)
        assert len(cached) == 4


def test_an_interrupted_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4", 2)
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", 5, (48, 64)) as writer:  # noqa: PT012
        for _ in range(80):  # more frames than the encoder buffers
            writer.write(np.zeros((48, 64, 3), np.uint8))
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == before


@pytest.mark.parametrize(("cut", "message"), [(400, "cannot be decoded"), (0, "cannot be decoded"), (None, "not found")])
def test_a_damaged_video_file_is_one_line(tmp_path: Path, cut: int | None, message: str) -> None:
    path = tmp_path / "a.mp4"
    write_film(path, 3)
    if cut is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=message) as error:
        open_video(path)
    assert str(path) in str(error.value)


def image(path: Path, level: int = 0) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), level, np.uint8)).save(path)


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        image(tmp_path / f"v/{number}.png", number)
    (tmp_path / "v/._1.png").write_bytes(b"what a desktop leaves")
    (tmp_path / "v/notes.txt").write_text("no frame")
    video = open_video(tmp_path / "v")
    assert video.frame_names == ("1", "9", "10")
    assert [int(video.read(t)[0, 0, 0]) for t in range(3)] == [1, 9, 10]


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["0", "1", "2", "10"], None),
        (["shot1_9", "shot1_10", "shot2_3"], None),
        (["IMG_0007"], None),
        (["0.0", "0.5", "1.0"], None),
        (["intro_1", "shot_1"], "'intro_1' and 'shot_1' differ in more than a number"),
        (["a", "b"], "'a' and 'b' differ in more than a number"),
        (["1", "2", "2b"], "'2' and '2b' differ in more than a number"),
        (["01", "1"], "'01' and '1' have the same number"),
        (["1.5", "1.25"], "'1.5' to '1.25' may be fractions or pairs of numbers"),
    ],
)
def test_an_order_that_the_names_do_not_tell(names: list[str], fault: str | None) -> None:
    """The names are in natural order."""
    assert sort_frames(names[::-1]) == names
    assert order_fault(names[::-1]) == fault


def test_a_folder_without_a_known_order_is_told(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for name in ("b", "a", "c1", "c2", "c3", "c4"):
        image(tmp_path / f"v/{name}.png")
    assert open_video(tmp_path / "v").frame_names == ("a", "b", "c1", "c2", "c3", "c4")
    (warning,) = recwarn
    assert str(warning.message) == (
        f"{tmp_path / 'v'}: the frames are read in the order a, b, c1, ..., c3, c4, but 'a' and 'b' differ in more than a number; "
        "number them if that is wrong"
    )


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_two_files_of_one_frame_are_an_error(tmp_path: Path, names: list[str] | None) -> None:
    for name in ("a.jpg", "b.jpg", "b.png"):
        image(tmp_path / "v" / name)
    with pytest.raises(InputError, match=r"frame b is there twice, as b\.jpg and b\.png"):
        folder_video(tmp_path / "v", "v", names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("clip.v2", "clip.v2"), ("what: a dog?", "what_ a dog_"), (".hidden", "hidden"), ("ж" * 100, "ж" * 35)],
)
def test_the_id_of_a_folder_can_name_folders(tmp_path: Path, name: str, expected: str) -> None:
    image(tmp_path / name / "0.png")
    assert open_video(tmp_path / name).video_id == expected


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frames"):
        open_video(tmp_path)
