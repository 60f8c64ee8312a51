"""Pack mask PNGs as a benchmark's server takes them, after checking that they are all there and whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.datasets.ref_davis17 import RefDavis17
from rvos_cache.errors import InputError
from rvos_cache.mask_png import check_mask_png
from rvos_select.merging.label_maps import SelectionAnswers
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions
from rvos_select.metrics.answers import dataset_of
from rvos_select.submission.ref_davis import LAYOUT, submit_ref_davis
from rvos_select.submission.zips import write_zip

LAYOUTS = {
    "mevis": "{video}/{expression}/{frame}.png",
    "ref-davis17": LAYOUT,
    "ref-youtube-vos": "Annotations/{video}/{expression}/{frame}.png",
}
"""Dataset -> place of a mask in its zip. MeViS: video folders at the root, no folder above them; Ref-YouTube-VOS: one above."""
SCORED = {"mevis": "valid_u", "ref-davis17": "valid"}
"""Dataset -> its split that shows its answers and that the benchmark's code scores all the same."""


def submit(
    predictions: Path, dataset: str, out: Path, expected: Dataset | None = None, root: Path | None = None, split: str = "valid"
) -> Path:
    """Write `out`, a zip of every expression's masks, 8-bit 0 and 255 at the video's size; returns it.

    expected: the split to submit; default: `dataset` under `root` (default data/<dataset>) and `split`. The zip appears when
    everything is checked. Ref-DAVIS17's masks are merged first, see `submit_ref_davis`. Raises InputError naming the first mask
    that is missing or wrong, and for a split that no benchmark scores because its answers are public.
    """
    _known(dataset)
    predictions, out = Path(predictions), Path(out)
    if not predictions.is_dir():
        raise InputError(f"{predictions}: no such folder of predictions; run rvos-select merge first")
    split_of = expected or open_dataset(dataset, root or Path("data") / dataset, split)
    _scored(dataset, split_of)
    if isinstance(split_of, RefDavis17):
        return submit_ref_davis(predictions, split_of, out)
    places = list(_places(predictions, split_of, LAYOUTS[dataset]))
    return write_zip(out, ((name, check_mask_png(path, size)) for name, path, size in sorted(places)))


def submit_selections(
    selections: Path,
    caches: Sequence[Path],
    out: Path,
    dataset: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    policy: PolicyOptions = DEFAULT_POLICY,
) -> Path:
    """Write `out`, Ref-DAVIS17's zip, from selections; returns it. Where objects overlap their scores decide: PNGs hold none.

    dataset, split: those of the caches when given; root: default, the hint in the card. Without a threshold the best track of
    each expression answers, as the benchmark's methods do. Raises InputError as `submit` does, and for caches of another
    dataset, whose masks do not meet in one picture and are merged first.
    """
    answers = SelectionAnswers(Path(selections), caches, policy)
    of = answers.source.card.dataset
    _known(of)
    known = dataset_of(answers.source, dataset, root, split)
    where = answers.source.caches[0].path
    if known is None:
        raise InputError(f"{where}: the dataset says who named which object, and is not at hand; give --root")
    if not isinstance(known, RefDavis17):
        raise InputError(f"{where}: of {of}, not ref-davis17; run rvos-select merge, then submit --predictions")
    _scored(of, known)
    return submit_ref_davis(answers, known, Path(out))


def _known(dataset: str) -> None:
    if dataset not in LAYOUTS:
        raise InputError(f"no submission format of dataset {dataset!r}; there are: {', '.join(sorted(LAYOUTS))}")


def _scored(dataset: str, split_of: Dataset) -> None:
    if split_of.has_ground_truth and split_of.split != SCORED.get(dataset):
        raise InputError(
            f"{split_of.root}: split {split_of.split} of {dataset} shows its answers, so no benchmark scores it; "
            "score it with rvos-select evaluate, or give the --split that is submitted"
        )


def _places(predictions: Path, dataset: Dataset, layout: str) -> Iterator[tuple[str, Path, tuple[int, int]]]:
    """(name in the zip, file, size) of every mask of the split, each looked up."""
    for video_id in dataset.video_ids():
        video = dataset.video(video_id)
        for expression in dataset.expressions(video_id):
            for frame in video.frame_names:
                path = predictions / video_id / expression.expression_id / f"{frame}.png"
                if not path.is_file():
                    needs = "a submission needs every frame of every expression"
                    raise InputError(f"{path}: the mask is missing, {needs}; run merge for it")
                yield layout.format(video=video_id, expression=expression.expression_id, frame=frame), path, video.size
