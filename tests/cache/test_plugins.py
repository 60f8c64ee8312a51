"""Plugins that break their contract: one line each, before anything runs or for the video that breaks it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from rvos_cache.cli import cli
from rvos_cache.errors import InputError
from rvos_cache.extraction import extract, extract_text
from rvos_cache.plugins import resolve
from rvos_cache.store import TrackCache
from rvos_cache.trackers import TRACKERS, tracker_class
from rvos_cache.types import DTYPES, FeatureSpec, TrackSet

sys.path.insert(0, str(Path(__file__).parent))
TINY = "store_fixtures:Tiny"

AT_LOAD = {
    "NotATracker": "is not a subclass of rvos_cache.Tracker; write class NotATracker(Tracker)",
    "NoTrack": "has no track; write def track(self, video, expressions)",
    "NoChannels": "has no channels; set it to the length of its vectors",
    "ChannelsAreText": "channels is '3', expected an int of at least 0",
    "OneArgument": "track(self, video) cannot be called as track(self, video, expressions)",
    "ThreeArguments": "track(self, video, expressions, ground_truth) cannot be called as track(self, video, expressions)",
    "TruthWithTwoArguments": "track(self, video, expressions) cannot be called as track(self, video, expressions, ground_truth)",
    "SettingsAreADict": "Settings is dict, expected a settings model; write class Settings(rvos_cache.Settings)",
    "SpecsAreNames": "feature_specs has 'maps', expected FeatureSpec(name, dims, dtype)",
    "SpecTwice": "'maps' is declared twice; give every feature and measurement its own name",
    "SpecOfObjects": "feature 'maps' has the dimension A (annotated objects), which a tracker does not see",
    "IouTooLarge": "label_iou is 1.5, expected a number between 0 and 1",
    "InitFails": "cannot be created: RuntimeError: no weights (",
    "InitSetsNoChannels": "has no channels",
    "HashesAreNumbers": "weight_hashes() returned {'weights': 3}, expected a dict of name to digest",
    "Nowhere": "bad_plugins.py has no 'Nowhere'",
}
AT_WRITE = {
    "OtherDtype": "feature 'a' is float64, declared float16",
    "Missing": "feature 'b' is declared, but the tracker does not return it",
    "Undeclared": "feature 'extra' is returned, but not declared; declared features: a, b",
    "OtherRank": "feature 'a' has shape (5,), declared (T, h)",
    "OtherNumber": "feature 'b' has shape (4, 3), declared (h, 2)",
    "OtherFrames": "feature 'a' has shape (99, 4), declared (T, h), and T (frames) is 5 in this video",
    "OtherLetter": "feature 'b' has shape (5, 2), declared (h, 2), and h is 4 in this video",
    "AList": "feature 'a' is a list, expected a NumPy array; only one declared by_frame may be an iterator",
    "StreamedDtype": "feature 'b', frame 1, is float64, declared float32",
    "StreamedShape": "feature 'b', frame 1, has shape (3,), declared (2)",
    "StreamedTooShort": "feature 'b' has shape (3, 2), declared (h, 2), and h is 4 in this video",
    "StreamedNothing": "feature 'b' is an iterator without a frame",
    "OtherChannels": "tokens have 3 channels, declared 4",
    "OtherTokens": "tokens are float32, declared float16",
    "PresenceTooLarge": "presence is not float16 in [0, 1]",
    "PromptOfNobody": "prompt is neither -1 (video) nor an index of the 2 expressions",
    "ReturnsNone": "track() returned None, expected a TrackSet",
    "OtherSize": "masks have 2 frames of (3, 3) pixels (height, width), the video has 5 of (12, 17)",
    "MeasuresNothing": "declares measurements (hits), but its TrackSet has no measure",
    "MeasuresAnother": "measurement 'hits' is declared, but the tracker does not return it",
    "MeasuresWrongDtype": "measurement 'hits' is float64, declared int32",
    "MeasuresWrongShape": "measurement 'hits' has shape (2, 7, 5), declared (N, A, T), and A (annotated objects) is 2",
    "MeasuresUndeclared": "its TrackSet has measure, but measurement_specs declares no measurement",
}
IN_CHECKS = {
    "PresenceOfEmptyMask": "presence in [0, 1], and 0 where a mask has no pixel: presence of track 0 in frame 0 is 1.0",
    "Random": "a new instance gives the same tracks: presence differs",
    "ReadsSentences": "the order of the expressions changes nothing: presence differs",
    "Peeks": "the same tracks with and without ground truth: presence differs",
    "NoBlankVideo": "a blank video (N = 0 allowed): ValueError: nothing here (",
    "AnySetting": "unknown settings are rejected: Settings accept the unknown name 'no_such_setting'",
    "OtherDtype": "tokens, features and measurements as declared: tracker bad_plugins:OtherDtype: feature 'a' is float64",
}


@pytest.mark.parametrize("name", AT_LOAD)
def test_a_tracker_without_a_part_is_refused_before_anything_runs(tmp_path: Path, name: str) -> None:
    out = tmp_path / "c.zarr"
    with pytest.raises(InputError, match=re.escape(AT_LOAD[name])) as caught:
        extract(TINY, tmp_path / "4", "train", f"bad_plugins:{name}", out)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"tracker bad_plugins:{name}: ")
    assert not out.exists()


@pytest.mark.parametrize("name", AT_WRITE)
def test_what_is_not_as_declared_fails_its_video(tmp_path: Path, name: str) -> None:
    out = tmp_path / "c.zarr"
    report = extract(TINY, tmp_path / "4", "train", f"bad_plugins:{name}", out, videos=["v03"])
    assert report.failed["v03"].startswith(f"tracker bad_plugins:{name}: {AT_WRITE[name]}") and not report.done
    assert TrackCache(out).video_ids() == () and "\n" not in report.failed["v03"]


@pytest.mark.parametrize("name", IN_CHECKS)
def test_check_tracker_names_what_fails(name: str) -> None:
    result = CliRunner().invoke(cli, ["check-tracker", f"bad_plugins:{name}"])
    assert isinstance(result.exception, InputError)
    assert any(line.startswith("FAILED") and IN_CHECKS[name] in line for line in result.output.splitlines()), result.output


def test_check_tracker_of_a_sound_tracker() -> None:
    result = CliRunner().invoke(cli, ["check-tracker", "bad_plugins:Sound"])
    lines = result.output.splitlines()
    assert result.exit_code == 0 and lines.pop() == "tracker bad_plugins:Sound passes" and {line[:2] for line in lines} == {"ok"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoEncode", "has no encode; write def encode(self, texts)"),
        ("NoEncoderChannels", "has no channels"),
        ("NotATracker", "is not a subclass of rvos_cache.TextEncoder"),
    ],
)
def test_an_encoder_without_a_part(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"text encoder bad_plugins:{name}: {message}")):
        extract_text(TINY, tmp_path / "4", "train", f"bad_plugins:{name}", tmp_path / "t.zarr")


def test_an_encoder_that_loses_a_sentence(tmp_path: Path) -> None:
    report = extract_text(TINY, tmp_path / "1", "train", "bad_plugins:TooFewWords", tmp_path / "t.zarr")
    assert report.failed == {"v00": "text encoder TooFewWords: expected words of 2 sentences, got 0; return one per sentence"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoVideo", "has no video; write def video(self, video_id)"),
        ("NotADataset", "is not a subclass of rvos_cache.Dataset"),
    ],
)
def test_a_dataset_without_a_part(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"dataset bad_plugins:{name}: {message}")):
        extract(f"bad_plugins:{name}", tmp_path, "train", "flow", tmp_path / "c.zarr")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nothing_of_this_name", "(no module named 'nothing_of_this_name')"),
        ("def f(:", "SyntaxError: invalid syntax ("),
        ("raise RuntimeError('x')", "RuntimeError: x ("),
        ("from rvos_cache import FeatureSpec\nFeatureSpec('a b', ('T',))", "the name must be a Python identifier"),
    ],
)
def test_a_module_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    module = f"broken_{abs(hash(request.node.name))}"
    (tmp_path / f"{module}.py").write_text(source)
    with pytest.raises(InputError) as caught:
        tracker_class(f"{module}:A")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    sys.path.remove(str(tmp_path))


@pytest.mark.parametrize("name", ["no_module_of_this_name:A", "no_package_of_this_name.module:A"])
def test_a_module_that_is_nowhere(name: str) -> None:
    with pytest.raises(InputError, match="it must lie in the current folder"):
        resolve(TRACKERS, name, "tracker")


@pytest.mark.parametrize("name", [":A", "bad_plugins:"])
def test_half_a_name(name: str) -> None:
    with pytest.raises(InputError, match="expected my_module:MyClass"):
        resolve(TRACKERS, name, "tracker")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a/b", ("T",)), "the name must be a Python identifier"),
        (("a", ()), "expected letters and numbers"),
        (("a", "TN"), "expected letters and numbers"),
        (("a", ("T", -1)), "neither a letter nor a size"),
        (("a", ("T", True)), "neither a letter nor a size"),
        (("a", ("N", "N")), "each letter stands for one axis"),
        (("a", ("T",), "float17"), "is not one of float16"),
        (("a", (3, "T"), "float16", True), "by_frame needs a letter"),
        (("a", ("h", "T"), "float16", True), "by_frame (stores slices|needs T)"),
    ],
)
def test_a_declaration_that_means_nothing(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureSpec(*arguments)  # type: ignore[arg-type]


def test_dtypes_of_declarations_are_numpys() -> None:
    assert all(str(np.dtype(name)) == name for name in DTYPES)


def test_from_masks_derives_what_is_not_given() -> None:
    masks = np.zeros((2, 3, 4, 5), bool)
    masks[0, 1, 1:3, 2:5] = True
    track_set = TrackSet.from_masks(np.ones((2, 3, 6)), masks)
    assert track_set.tokens.dtype == np.float16 and track_set.presence.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert track_set.prompt.tolist() == [-1, -1] and track_set.origin == ("track", "track")
    assert track_set.prompt_frame.tolist() == [1, 0] and track_set.prompt_box.tolist() == [[2, 1, 5, 3], [0, 0, 0, 0]]
    same = TrackSet.from_masks(
        np.ones((2, 3, 6)), track_set.masks, presence=np.full((2, 3), 0.5), prompt=[0, -1], origin=["a", "b"]
    )
    assert same.masks == track_set.masks and same.presence.dtype == np.float16 and same.origin == ("a", "b")
    assert same.prompt.tolist() == [0, -1] and same.prompt.dtype == np.int32
    none = TrackSet.from_masks(np.zeros((0, 3, 6)), np.zeros((0, 3, 4, 5), bool))
    assert none.masks.shape == (0, 3) and none.masks.size == (4, 5) and none.prompt_box.shape == (0, 4)


@pytest.mark.parametrize(
    ("tokens", "masks", "message"),
    [
        (np.ones((1, 3, 6)), np.ones((1, 3, 4, 5)), "masks must be bool"),
        (np.ones((1, 3, 6)), np.ones((1, 4, 5), bool), "masks must be bool"),
        (np.ones((2, 3, 6)), np.ones((1, 3, 4, 5), bool), "TrackSet.tokens has shape"),
        (np.full((1, 3, 6), 1e6), np.ones((1, 3, 4, 5), bool), "NaN or infinite"),
    ],
)
def test_from_masks_refuses_what_does_not_fit(tokens: np.ndarray, masks: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrackSet.from_masks(tokens, masks)
