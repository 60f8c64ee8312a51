"""Names of bytes that are not UTF-8, names of classes that are none of ours, numbers out of range: right, or one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from odd_videos import EXPRESSIONS, Result, call, write_split
from PIL import Image

from rvos_cache.cli import cli as cache_cli
from rvos_cache.errors import InputError
from rvos_cache.plugins import resolve_function
from rvos_cache.settings import build
from rvos_cache.store import TrackCache, content_digest, read_card, verify
from rvos_select.data.augment import Clip, load_augmentation
from rvos_select.data.labels import label_rule
from rvos_select.training.settings import TrainSettings

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "cache"))

BYTES = os.fsdecode(b"caf\xe9")
"""A file name in Latin-1, as archives from elsewhere have."""


def program(*arguments: object, encoding: str = "utf-8") -> tuple[int, str, str]:
    """Status, stdout and stderr without progress lines, of a command in a process of its own.

    pytest-xdist cannot send captured text that is not Unicode.
    """
    package = "rvos_cache" if arguments[0] in cache_cli.commands else "rvos_select"
    code = f"import sys; sys.argv[0] = 'rvos'; from {package}.cli import main; main()"
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
    # click writes UTF-8 where the encoding is ASCII, which is most often a locale that is not set.
    stdout, stderr = (raw.decode("utf-8" if encoding == "ascii" else encoding) for raw in (process.stdout, process.stderr))
    lines = stderr.splitlines()
    return process.returncode, stdout, "\n".join(line for line in lines if " to go" not in line)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split and a run trained on it."""
    out = tmp_path_factory.mktemp("named")
    write_split(out / "data/train", dict.fromkeys(("t0", "t1"), (4, True, EXPRESSIONS)))
    split = ("--dataset", "mevis", "--root", out / "data", "--split", "train")
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, None, "extract", *split, "--out", out / "c.zarr")[0] == 0
        assert call(patch, None, "extract-text", *split, "--out", out / "t.zarr")[0] == 0
    return out


def test_a_root_and_a_cache_may_have_any_name(data: Path, tmp_path: Path) -> None:
    """The same content as under another name, and the root is read back as it was."""
    shutil.copytree(data / "data", tmp_path / BYTES)
    split = ("--dataset", "mevis", "--root", tmp_path / BYTES, "--split", "train")
    cache = tmp_path / f"{BYTES}.zarr"
    for arguments in (
        ("check", *split),
        ("extract", *split, "--out", cache),
        ("extract", *split, "--out", cache),  # It goes on: the card is the same.
        ("info", cache),
        ("oracle", "--cache", cache),
    ):
        code, stdout, stderr = program(*arguments)
        assert (code, stderr) == (0, "") and stdout
    assert content_digest(cache) == content_digest(data / "c.zarr")
    assert read_card(cache).root == str(tmp_path / BYTES)
    assert list(verify(cache)) == []


def test_a_run_needs_a_name_of_text(data: Path, tmp_path: Path) -> None:
    given = ("--cache", data / "c.zarr", "--text", data / "t.zarr", "--selector", "mean-cosine", "--set", "epochs=1")
    code, _, stderr = program("train", *given, "--out", tmp_path / BYTES)
    assert code == 1 and "which TensorBoard's files need; choose another --out" in stderr and stderr.count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_a_video_whose_name_is_no_text_stops_no_other(tmp_path: Path) -> None:
    frame = np.full((8, 8, 3), 90, np.uint8)
    for name in ("a", BYTES):
        (tmp_path / "d/videos" / name).mkdir(parents=True)
        Image.fromarray(frame).save(tmp_path / "d/videos" / name / "00000.jpg")
    (tmp_path / "d/expressions.json").write_text(json.dumps({"a": ["a dog"], BYTES: ["a cat"]}))
    split = ("--dataset", "plain", "--root", tmp_path / "d", "--split", "all")
    for arguments in (("extract", *split, "--out", tmp_path / "c.zarr"), ("extract-text", *split, "--out", tmp_path / "t.zarr")):
        code, _, stderr = program(*arguments)
        first, last = stderr.splitlines()
        assert (
            code == 1 and r"the id 'caf\udce9' cannot name a folder" in first and last.startswith("error: 1 of 2 videos failed")
        )
    cache = TrackCache(tmp_path / "c.zarr")
    assert cache.video_ids() == ("a",) and [os.fsencode(name) for name in cache.failures()] == [b"caf\xe9"]
    code, stdout, _ = program("info", tmp_path / "c.zarr")
    assert code == 0 and r"failed caf\udce9: " in stdout


def test_a_track_whose_name_is_no_text_is_named(tmp_path: Path) -> None:
    write_split(tmp_path / "d/train", {"v": (1, True, EXPRESSIONS)})
    (tmp_path / "tracks/v" / BYTES).mkdir(parents=True)
    Image.new("L", (48, 32)).save(tmp_path / "tracks/v" / BYTES / "00000.png")
    split = ("--dataset", "mevis", "--root", tmp_path / "d", "--split", "train")
    code, _, stderr = program("import-masks", tmp_path / "tracks", *split, "--out", tmp_path / "c.zarr")
    assert code == 1 and r"track: the id 'caf\udce9' cannot name a folder" in stderr.splitlines()[0]


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", r"蓝caf\udce9"), ("ascii", "蓝caf?"), ("latin-1", r"\u84ddcaf\udce9")])
def test_what_the_terminal_cannot_show_is_escaped(tmp_path: Path, encoding: str, shown: str) -> None:
    """Faults go to stdout, whose own treatment of such letters is an exception."""
    write_split(tmp_path / f"蓝{BYTES}/train", {"v": (1, True, EXPRESSIONS)})
    (tmp_path / f"蓝{BYTES}/train/JPEGImages/v/00000.jpg").write_bytes(b"x")
    root = tmp_path / f"蓝{BYTES}"
    code, stdout, stderr = program("check", "--dataset", "mevis", "--root", root, "--split", "train", encoding=encoding)
    assert code == 1 and stderr.count("\n") == 0
    assert f"{shown}/train/JPEGImages/v/00000.jpg" in stdout


NOT_OURS = (
    "json:JSONDecoder",
    "os:path",
    "math:pi",
    "no_such_module:X",
    "../x:Y",
    "a b:C",
    ":C",
    "json:",
    "json:nothing",
    "json",
)
USES: dict[str, tuple[str, ...]] = {
    "dataset": ("check", "--dataset", "{name}", "--root", "{data}/data", "--split", "train"),
    "tracker": ("extract", "--dataset", "mevis", "--root", "{data}/data", "--split", "train", "--tracker", "{name}", "--out", "{new}"),
    "text encoder": (
        "extract-text", "--dataset", "mevis", "--root", "{data}/data", "--split", "train", "--encoder", "{name}", "--out", "{new}",
    ),
    "selector": ("train", "--cache", "{data}/c.zarr", "--text", "{data}/t.zarr", "--selector", "{name}", "--out", "{new}"),
    "label rule": (
        "train", "--cache", "{data}/c.zarr", "--text", "{data}/t.zarr", "--selector", "mean-cosine", "--set", "label_rule={name}",
        "--out", "{new}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_OURS)
@pytest.mark.parametrize("kind", sorted(USES))
def test_what_is_no_class_of_ours_is_one_line(
    data: Path, rvos: Callable[..., Result], tmp_path: Path, kind: str, name: str
) -> None:
    code, stderr = rvos(*(w.format(name=name, data=data, new=tmp_path / "new") for w in USES[kind]))
    assert code == 1 and stderr.count("\n") == 0, stderr
    assert stderr.startswith((f"error: {kind} {name}", f"error: no {kind} {name!r}; there are: "))
    assert not (tmp_path / "new").exists()


def wrong_arguments(overlap: object) -> None:
    """A function of one argument."""


def raises(*arguments: object) -> None:
    raise KeyError("soft")


def returns_none(clip: object, generator: object) -> None:
    """An augmentation that forgets its result."""


def test_functions_of_the_user_are_held_to_their_arguments() -> None:
    own = f"{__name__}:"
    with pytest.raises(
        InputError, match=r"label rule .*wrong_arguments: expected a function of \(overlap, objects, threshold\) \(too"
    ):
        label_rule(f"{own}wrong_arguments")
    with pytest.raises(InputError, match=r"label rule .*raises: failed: KeyError: 'soft' \(.*test_odd_names\.py:\d+\)"):
        label_rule(f"{own}raises")(None, (), 0.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"math:pi: is a float, expected a function of \(a, b\)"):
        resolve_function({}, "math:pi", "rule", ("a", "b"))
    augment = load_augmentation([f"{own}returns_none"])
    assert augment is not None
    with pytest.raises(InputError, match="returns_none: returned None, expected a Clip"):
        augment(Clip(None, None, "a dog"), None)  # type: ignore[arg-type]


NUMBERS = {
    "seed": -1,
    "epochs": 0,
    "batch_size": 2**63,
    "threads": 1025,
    "optim.lr": 0,
    "optim.beta2": 1,
    "optim.warmup": 10**30,
    "weights.mevis": 1e9,
    "clip.frames": 0,
    "hold_out": 1,
    "label_iou": 1.5,
    "config.width": 0,
}


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_number_out_of_range_is_one_line(data: Path, rvos: Callable[..., Result], tmp_path: Path, name: str) -> None:
    given = ("train", "--cache", data / "c.zarr", "--text", data / "t.zarr", "--selector", "mean-cosine")
    code, stderr = rvos(*given, "--set", f"{name}={NUMBERS[name]}", "--out", tmp_path / "new")
    last = name.removeprefix("config.")
    assert code == 1 and stderr.startswith("error: ") and f"setting '{last}'" in stderr and stderr.count("\n") == 0, stderr
    assert str(NUMBERS[name]).rstrip("0.") in stderr and not (tmp_path / "new").exists()


def test_large_numbers_are_found_at_any_depth() -> None:
    for values in ({"seed": 2**63}, {"optim": {"warmup": -(2**63) - 1}}, {"optim": {"milestones": [0.5, 2**64]}}):
        with pytest.raises(InputError, match=r"setting '.*': expected a number below 2\^63"):
            build(TrainSettings, values, "train settings")
    assert build(TrainSettings, {"seed": 2**63 - 1}, "train settings").seed == 2**63 - 1


def test_a_number_of_five_thousand_digits_is_cut_in_the_message(data: Path, rvos: Callable[..., Result], tmp_path: Path) -> None:
    """Python refuses to read it: it is not even TOML."""
    given = ("train", "--cache", data / "c.zarr", "--text", data / "t.zarr", "--selector", "mean-cosine")
    code, stderr = rvos(*given, "--set", f"seed={'9' * 5000}", "--out", tmp_path / "new")
    assert code == 1 and "setting 'seed'" in stderr and len(stderr) < 300


def test_a_module_larger_than_the_memory_is_one_line(data: Path, rvos: Callable[..., Result], tmp_path: Path) -> None:
    given = ("train", "--cache", data / "c.zarr", "--text", data / "t.zarr", "--selector", "mean-cosine")
    code, stderr = rvos(*given, "--set", f"config.width={2**62}", "--out", tmp_path / "new")
    assert (
        code == 1
        and stderr.startswith("error: selector mean-cosine: cannot be made with this config")
        and stderr.count("\n") == 0
    )


def test_two_selectors_are_wrong_usage(data: Path, rvos: Callable[..., Result], tmp_path: Path) -> None:
    given = (
        "train",
        "--cache",
        data / "c.zarr",
        "--selector",
        "mean-cosine",
        "--set",
        "selector=sola",
        "--out",
        tmp_path / "new",
    )
    code, stderr = rvos(*given)
    assert code == 2 and "give one of them" in stderr
    assert stderr.startswith("error: ") and stderr.endswith(" train --help lists the options") and "\n" not in stderr
