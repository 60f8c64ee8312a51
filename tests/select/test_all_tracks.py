"""The baseline that selects every candidate of every expression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_caches import write

from rvos_cache.errors import InputError
from rvos_cache.store import SelectionCache
from rvos_select.data.caches import TrackSource, candidates
from rvos_select.inference.predict import predict, select_all
from rvos_select.merging.policy import resolve_policy
from rvos_select.training.train import train


def test_every_candidate_is_selected_and_no_other(tmp_path: Path) -> None:
    tracks, text = write(tmp_path, "valid_u", ["v0", "v1"])
    selections = SelectionCache(predict(None, [tracks], [text], tmp_path / "s.zarr", selector="all-tracks"))
    source, policy = TrackSource([tracks]), resolve_policy(selections)
    for video_id in source.video_ids():
        for selection in selections.selections(video_id):
            allowed = candidates(source.info(video_id), selection.expression_id)
            assert np.array_equal(selection.scores, allowed.astype(np.float32)) and np.array_equal(selection.candidates, allowed)
            assert np.array_equal(policy(selection), np.flatnonzero(allowed))
    again = SelectionCache(select_all([tracks], [text], tmp_path / "again.zarr"))
    assert again.card.differences(selections.card) == []


def test_it_cannot_be_trained(tmp_path: Path) -> None:
    tracks, text = write(tmp_path, "train", ["v0", "v1"])
    with pytest.raises(InputError, match="selector all-tracks: it has nothing to train"):
        train([tracks], [text], settings={"selector": "all-tracks"}, out=tmp_path / "run")
