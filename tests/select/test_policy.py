"""Which tracks answer: by hand for each rule, and how what is asked, the card and the record of a merge come together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_oracle import write_cache, write_words

from rvos_cache.errors import InputError
from rvos_cache.store import Card, SelectionCache
from rvos_cache.types import Selection
from rvos_select.cli import cli
from rvos_select.data.one_object import all_name_one_object
from rvos_select.inference.predict import predict
from rvos_select.merging.policy import DEFAULT_POLICY, Decision, PolicyOptions, SelectionPolicy, resolve_policy, selector_policy
from rvos_select.selectors import SELECTORS, selector_class
from rvos_select.selectors.mean_cosine import MeanCosine
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

NONE: list[int] = []


def selection(scores: list[float], candidates: list[bool] | None = None) -> Selection:
    mine = np.array([True] * len(scores) if candidates is None else candidates, bool)
    return Selection("0", np.array(scores, np.float32), mine)


@dataclass
class Selections:
    """What `resolve_policy` reads of a selections cache."""

    card: Card
    path: Path = Path("s.zarr")


def selections(**extra: Any) -> Any:
    return Selections(Card(kind="selections", dataset="mevis", split="valid_u", producer="run", extra=extra))


@pytest.mark.parametrize(
    ("scores", "candidates", "threshold", "zeros", "fallback", "best"),
    [
        ([0.5, 0.6, 0.4], None, 0.5, [1], [1], [1]),
        ([0.5, 0.4], None, 0.5, NONE, [0], [0]),  # strict
        ([0.6, 0.9, 0.7], None, 0.65, [1, 2], [1, 2], [1]),
        ([0.2, 0.4, 0.4], None, 0.5, NONE, [1], [1]),  # ties: the first
        ([0.9, 0.8, 0.7], [False, True, True], 0.5, [1, 2], [1, 2], [1]),
        ([0.9, 0.2, 0.3], [False, True, True], 0.5, NONE, [2], [2]),
        ([0.9], [False], 0.5, NONE, NONE, NONE),
        ([0.0, 0.1], None, 0.0, [1], [1], [1]),
        ([0.0, 0.0], None, 0.0, NONE, [0], [0]),
        ([1.0, 0.3], None, 1.0, NONE, [0], [0]),
        ([], None, 0.0, NONE, NONE, NONE),
    ],
)
def test_chosen_by_hand(
    scores: list[float],
    candidates: list[bool] | None,
    threshold: float,
    zeros: list[int],
    fallback: list[int],
    best: list[int],
) -> None:
    one = selection(scores, candidates)
    assert SelectionPolicy(threshold)(one).tolist() == SelectionPolicy(threshold, empty="zeros")(one).tolist() == zeros
    assert SelectionPolicy(threshold, empty="top1")(one).tolist() == fallback
    assert SelectionPolicy(threshold, top1=True)(one).tolist() == best
    for policy in (SelectionPolicy(threshold), SelectionPolicy(threshold, empty="top1"), SelectionPolicy(threshold, top1=True)):
        assert policy(one).dtype == np.intp


def test_the_best_alone_is_what_answers_above_the_highest_score() -> None:
    """No score is above 1, so that then everything is the fallback."""
    rng = np.random.default_rng(0)
    for n in range(6):
        one = selection(rng.random(n).tolist(), (rng.random(n) > 0.4).tolist())
        assert SelectionPolicy(1.0, empty="top1")(one).tolist() == SelectionPolicy(0.5, top1=True)(one).tolist()


@pytest.mark.parametrize(
    ("card", "options", "expected"),
    [
        ({}, DEFAULT_POLICY, SelectionPolicy(0.5)),
        ({"threshold": 0.7}, DEFAULT_POLICY, SelectionPolicy(0.7)),
        ({"threshold": 0.7}, PolicyOptions(0.2), SelectionPolicy(0.2)),
        ({"threshold": 0.7}, PolicyOptions(0.0), SelectionPolicy(0.0)),
        ({"threshold": 0.7}, PolicyOptions(empty="top1"), SelectionPolicy(0.7, empty="top1")),
        ({"threshold": 0.7, "empty": "top1"}, DEFAULT_POLICY, SelectionPolicy(0.7, empty="top1")),
        ({"threshold": 0.7, "empty": "top1"}, PolicyOptions(0.2), SelectionPolicy(0.2, empty="top1")),
        ({"threshold": 0.7, "empty": "top1"}, PolicyOptions(empty="zeros"), SelectionPolicy(0.7)),
        ({"threshold": 0.7, "empty": "zeros"}, PolicyOptions(0.3, empty="top1"), SelectionPolicy(0.3, empty="top1")),
        ({"threshold": 0.7, "top1": False}, DEFAULT_POLICY, SelectionPolicy(0.7)),
        ({"threshold": 0.7, "top1": True}, DEFAULT_POLICY, SelectionPolicy(0.7, top1=True)),
        ({"threshold": 0.7, "top1": True, "empty": "top1"}, DEFAULT_POLICY, SelectionPolicy(0.7, top1=True)),
        ({"threshold": 0.7, "top1": True}, PolicyOptions(0.3), SelectionPolicy(0.3)),
        ({"threshold": 0.7, "top1": True, "empty": "top1"}, PolicyOptions(0.3), SelectionPolicy(0.3, empty="top1")),
        ({"threshold": 0.7, "empty": "top1"}, PolicyOptions(top1=True), SelectionPolicy(0.7, top1=True)),
        ({"threshold": 0.7, "draw_threshold": 0.1}, PolicyOptions(0.1, empty="top1"), SelectionPolicy(0.1, empty="top1")),
        ({"threshold": 0.05, "draw_threshold": 0.1}, PolicyOptions(top1=True), SelectionPolicy(0.05, top1=True)),
    ],
)
def test_options_and_card(card: dict[str, Any], options: PolicyOptions, expected: SelectionPolicy) -> None:
    assert resolve_policy(selections(**card), options) == expected


def test_a_protocol_whose_answer_is_the_best_track() -> None:
    card = selections(threshold=0.7, empty="top1")
    assert (
        resolve_policy(card, top1_by_default=True)
        == resolve_policy(card, PolicyOptions(top1=True), top1_by_default=True)
        == SelectionPolicy(0.7, top1=True)
    )
    assert resolve_policy(card, PolicyOptions(0.4), top1_by_default=True) == SelectionPolicy(0.4, empty="top1")
    assert resolve_policy(card, PolicyOptions(0.4, empty="zeros"), top1_by_default=True) == SelectionPolicy(0.4)


@pytest.mark.parametrize("empty", ["zeros", "top1"])
@pytest.mark.parametrize(("card", "unasked"), [({"top1": True}, False), ({}, True)])
def test_an_answer_that_is_never_empty_takes_no_empty(card: dict[str, Any], unasked: bool, empty: Any) -> None:
    with pytest.raises(InputError, match="s.zarr: each expression gets its best track; give --empty together with --threshold"):
        resolve_policy(selections(**card), PolicyOptions(empty=empty), unasked)


@pytest.mark.parametrize("empty", [None, "zeros", "top1"])
def test_queries_whose_masks_were_not_drawn_are_never_chosen(empty: Any) -> None:
    """Whatever answers where none is above: below the draw threshold a threshold would choose them."""
    with pytest.raises(InputError, match=r"s.zarr: threshold 0.05, but only masks of scores above 0.1 were predicted"):
        resolve_policy(selections(threshold=0.7, draw_threshold=0.1), PolicyOptions(0.05, empty=empty))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.5, "top1": True}, "--threshold and --top1 exclude each other"),
        ({"threshold": 0.0, "top1": True}, "--threshold and --top1 exclude each other"),
        ({"top1": True, "empty": "zeros"}, "--empty and --top1 exclude each other"),
        ({"threshold": 0.5, "top1": True, "empty": "top1"}, "--top1 exclude each other"),
        ({"threshold": -0.1}, r"--threshold -0.1: scores are in \[0, 1\]"),
        ({"threshold": 1.5}, r"--threshold 1.5: scores are in \[0, 1\]"),
        ({"threshold": float("nan")}, "--threshold nan"),
        ({"empty": "best"}, "--empty: empty must be one of zeros, top1, not 'best'"),
        ({"empty": ""}, "--empty: empty must be one of zeros, top1, not ''"),
    ],
)
def test_choices_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        PolicyOptions(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["best", None, 1, True])
def test_a_card_that_is_not_understood(value: object) -> None:
    with pytest.raises(InputError, match=f"s.zarr: empty must be one of zeros, top1, not {value!r}"):
        resolve_policy(selections(empty=value))


def test_the_record_tells_rules_apart() -> None:
    policies = [SelectionPolicy(0.5), SelectionPolicy(0.7), SelectionPolicy(0.5, empty="top1"), SelectionPolicy(0.5, top1=True)]
    records = [policy.record() for policy in policies]
    assert all(a != b for i, a in enumerate(records) for b in records[i + 1 :])
    # With the best track alone the threshold says nothing.
    assert SelectionPolicy(0.7, top1=True).record() == records[-1]


@pytest.mark.parametrize(
    ("datasets", "one_object"),
    [
        (["refcoco"], True),
        (["mevis"], False),
        (["refcoco", "ref-youtube-vos"], True),
        (["refcoco", "mevis"], False),
        (["x"], False),
    ],
)
def test_datasets_whose_expressions_name_one_object(datasets: list[str], one_object: bool) -> None:
    """Of several caches all must: an expression of MeViS may name several objects."""
    assert all_name_one_object(datasets) is all_name_one_object(datasets[::-1]) is one_object


@pytest.mark.parametrize("one_object", [True, False])
def test_the_best_track_is_selected_where_every_expression_names_one_object(one_object: bool) -> None:
    """By selectors that say so; others keep their threshold."""
    selector = SimpleNamespace(threshold=0.7, empty="zeros", top1_of_one=True)
    assert selector_policy(selector, one_object) == SelectionPolicy(0.7, top1=one_object)
    selector = SimpleNamespace(threshold=0.7, empty="top1", top1_of_one=False)
    assert selector_policy(selector, one_object) == SelectionPolicy(0.7, empty="top1")


def test_the_name_in_scripts_that_compare_with_released_code() -> None:
    assert Decision is SelectionPolicy


COMMANDS = {
    "merge": ["--selections", "s.zarr", "--cache", "c.zarr", "--out", "png"],
    "evaluate": ["--selections", "s.zarr", "--cache", "c.zarr"],
    "submit": ["--selections", "s.zarr", "--cache", "c.zarr", "--out", "x.zip"],
    "ask": ["video.mp4", "a red square", "--run", "run", "--out", "ask"],
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", "0.5", "--top1"], "--threshold and --top1 exclude each other"),
        (["--threshold", "0", "--top1"], "--threshold and --top1 exclude each other"),
        (["--top1", "--empty", "top1"], "--empty and --top1 exclude each other"),
        (["--empty", "best"], "'best' is not one of 'zeros', 'top1'"),
        (["--threshold", "1.5"], "1.5 is not in the range 0<=x<=1"),
    ],
)
def test_every_command_refuses_the_same(command: str, words: list[str], message: str) -> None:
    """Before any file is looked for."""
    result = CliRunner().invoke(cli, [command, *COMMANDS[command], *words])
    assert result.exit_code == 2 and message in result.output


@pytest.mark.parametrize("words", [["--threshold", "0.5"], ["--top1"], ["--empty", "zeros"]])
def test_masks_were_chosen_in_merge(words: list[str]) -> None:
    arguments = ["--dataset", "mevis", "--root", "data", "--split", "valid_u", "--predictions", "png"]
    result = CliRunner().invoke(cli, ["evaluate", *arguments, *words])
    assert result.exit_code == 2 and "--predictions takes no --threshold, --top1 or --empty" in result.output


class Eager(MeanCosine):
    """A selector of one's own that always answers."""

    empty = "top1"


@pytest.mark.parametrize("name", sorted(SELECTORS.keys() - {"clip-zero-shot", "referdino", "dervos"}))
def test_selectors_leave_nothing_chosen_empty(name: str) -> None:
    cls = selector_class(name)
    assert cls(cls.Config()).empty == "zeros"  # type: ignore[attr-defined]


def test_a_selector_names_its_own_answer_in_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, words = [write_cache(tmp_path / "c.zarr", 0)], [write_words(tmp_path / "t.zarr")]
    settings = TrainSettings.model_validate({"selector": "test_policy:Eager", "config": {"width": 8}, "epochs": 1})
    run = train(cache, words, settings=settings, valid_tracks=cache, valid_texts=words, out=tmp_path / "run")
    eager = SelectionCache(predict(run, cache, words, tmp_path / "eager.zarr"))
    assert resolve_policy(eager) == SelectionPolicy(0.5, empty="top1")
    assert resolve_policy(eager, PolicyOptions(empty="zeros")) == SelectionPolicy(0.5)
    # The default is what a card without the entry means, so that what older code predicted is gone on with.
    monkeypatch.setattr(Eager, "empty", "zeros")
    plain = SelectionCache(predict(run, cache, words, tmp_path / "plain.zarr"))
    assert plain.card.extra.keys() == {"threshold", "top1", "tracks", "text"}
    assert resolve_policy(plain) == SelectionPolicy(0.5)
    with pytest.raises(InputError, match="extra.empty"):
        predict(run, cache, words, tmp_path / "eager.zarr")
    monkeypatch.setattr(Eager, "empty", "best")
    with pytest.raises(InputError, match="selector 'test_policy:Eager': empty is 'best'; there are: zeros, top1"):
        predict(run, cache, words, tmp_path / "wrong.zarr")
    assert not (tmp_path / "wrong.zarr").exists()
