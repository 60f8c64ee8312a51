"""Differences by name, the deepest one that has a name."""

from __future__ import annotations

from rvos_cache.differences import differences, first_difference


def test_the_deepest_name_is_given() -> None:
    old = {"a": 1, "b": {"x": 1, "y": {"z": [1, 2]}}, "tracks": [{"seed": 0}, {"seed": 1, "path": "p"}], "same": [{"q": 1}]}
    new = {"a": 1, "b": {"x": 2, "y": {"z": [1, 3]}}, "tracks": [{"seed": 0}, {"seed": 2}], "same": [{"q": 1}]}
    assert list(differences(old, new)) == [
        ("b.x", 1, 2),
        ("b.y.z", [1, 2], [1, 3]),
        ("tracks[1].path", "p", None),
        ("tracks[1].seed", 1, 2),
    ]
    assert list(differences(old, old)) == []


def test_lists_of_records_of_other_lengths_are_not_printed() -> None:
    assert list(differences({"specs": [{"a": 1}]}, {"specs": []})) == [("length of specs", 1, 0)]
    assert first_difference([{"a": 1}, {"a": 2}], [{"a": 1}], "extra.tracks") == ("length of extra.tracks", 2, 1)


def test_a_value_that_became_another_kind_is_named() -> None:
    assert list(differences({"weights": {"a": "1"}}, {"weights": None})) == [("weights.a", "1", None)]
    assert first_difference(1, True) == ("", 1, True)
