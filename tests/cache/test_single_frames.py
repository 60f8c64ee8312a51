"""Splits of single frames: A2D's and JHMDB's scored frames as videos of one frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_a2d_sentences import write_a2d
from test_jhmdb_sentences import SCORED, write_jhmdb

from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.identity import frames_digest
from rvos_cache.shapes import write_shapes


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("frames")
    for name, write in (("a2d-sentences", write_a2d), ("jhmdb-sentences", write_jhmdb)):
        (folder / name).mkdir()
        write(folder / name)
    return {name: folder / name for name in ("a2d-sentences", "jhmdb-sentences")}


def both(roots: dict[str, Path], name: str, split: str) -> tuple[Dataset, Dataset]:
    return open_dataset(name, roots[name], split), open_dataset(name, roots[name], f"{split}-frames")


@pytest.mark.parametrize(("name", "split"), [("a2d-sentences", "train"), ("a2d-sentences", "test"), ("jhmdb-sentences", "test")])
def test_every_sample_of_the_split_is_one_of_a_frame(roots: dict[str, Path], name: str, split: str) -> None:
    whole, frames = both(roots, name, split)
    samples = {s.image_id: s for video_id in whole.video_ids() for s in whole.samples(video_id) or ()}
    in_frames = {}
    assert (frames.name, frames.split, frames.protocol, frames.one_object) == (name, f"{split}-frames", "image", True)
    for video_id in frames.video_ids():
        video, truth = frames.video(video_id), frames.ground_truth(video_id)
        expressions = {e.expression_id: e for e in frames.expressions(video_id)}
        assert len(video) == 1 and truth is not None and tuple(expressions) == frames.expression_ids(video_id)
        for sample in frames.samples(video_id) or ():
            in_frames[sample.image_id] = sample
            before = samples[sample.image_id]
            assert sample.t == 0 and sample.video_id == video_id
            original, original_truth = whole.video(before.video_id), whole.ground_truth(before.video_id)
            assert np.array_equal(video.read(0), original.read(before.t))
            assert video.frame_names[0] == original.frame_names[before.t]
            first = {e.expression_id: e for e in whole.expressions(before.video_id)}[before.expression_id]
            own = expressions[sample.expression_id]
            assert own.text == first.text and original_truth is not None
            (a,), (b,) = truth.indices(own.targets or ()), original_truth.indices(first.targets or ())
            assert np.array_equal(truth.masks.decode(a, 0), original_truth.masks.decode(b, before.t))
    assert in_frames.keys() == samples.keys() and in_frames
    assert list(frames.check()) == list(whole.check())


def test_ids_are_those_of_the_benchmark(roots: dict[str, Path]) -> None:
    _, frames = both(roots, "jhmdb-sentences", "test")
    assert frames.video_ids() == tuple(f"{video}_f_{n}" for video, numbers in SCORED.items() for n in numbers)
    _, frames = both(roots, "a2d-sentences", "train")
    assert set(frames.expression_ids("-a_f_2")) == {"0", "2"} and frames.expression_ids("-a_f_5") == ("0",)
    objects = [o for v in frames.video_ids() for o in frames.ground_truth(v).object_ids]  # type: ignore[union-attr]
    assert len(objects) == len(set(objects))


@pytest.mark.parametrize("name", ["a2d-sentences", "jhmdb-sentences"])
def test_frames_of_a_video_differ_in_their_digests(roots: dict[str, Path], name: str) -> None:
    _, frames = both(roots, name, "test")
    for first in {video_id.rpartition("_f_")[0] for video_id in frames.video_ids()}:
        digests = [frames_digest(frames.video(v)) for v in frames.video_ids() if v.rpartition("_f_")[0] == first]
        assert len(set(digests)) == len(digests) > 1


def test_mirrored_frames(roots: dict[str, Path]) -> None:
    mirrored = open_dataset("a2d-sentences", roots["a2d-sentences"], "train-frames-mirror")
    assert mirrored.split == "train-frames-mirror"
    plain = open_dataset("a2d-sentences", roots["a2d-sentences"], "train-frames")
    assert np.array_equal(mirrored.video("-a_f_2-mirror").read(0), plain.video("-a_f_2").read(0)[:, ::-1])


@pytest.mark.parametrize("video_id", ["-a", "-a_f_1", "-a_f_02", "-a_f_", "x_f_2", "-a_f_-1", "-a_f_99"])
def test_a_frame_that_is_not_scored_is_one_line(roots: dict[str, Path], video_id: str) -> None:
    _, frames = both(roots, "a2d-sentences", "train")
    with pytest.raises(InputError) as caught:
        frames.video(video_id)
    assert "\n" not in str(caught.value)


def test_a_dataset_without_scored_frames_has_no_such_split(tmp_path: Path) -> None:
    write_shapes(tmp_path, 2, 0)
    with pytest.raises(InputError, match="mevis does not list scored frames; give 'train'"):
        open_dataset("mevis", tmp_path, "train-frames")
