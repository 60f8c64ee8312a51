"""Pack mask PNGs for a benchmark's server, after checking that none is missing or damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rvos_cache.datasets import DATASETS, Dataset, dataset_class, open_dataset
from rvos_cache.datasets.ref_davis17 import RefDavis17
from rvos_cache.errors import InputError
from rvos_cache.media.mask_png import check_mask_png
from rvos_cache.system.progress import tracked
from rvos_select.evaluation.against import check_same_videos
from rvos_select.evaluation.ground_truth import dataset_of
from rvos_select.merging.label_maps import SelectionPredictions
from rvos_select.merging.merge import check_masks_of
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions
from rvos_select.paths import PathLike, Paths
from rvos_select.submission.ref_davis import submit_ref_davis
from rvos_select.submission.zips import write_zip


def submit(
    predictions: PathLike,
    dataset: str,
    out: PathLike,
    expected: Dataset | None = None,
    root: PathLike | None = None,
    split: str = "valid",
) -> Path:
    """Write `out`, a zip of every expression's masks, 8-bit 0 and 255 at the video's size; returns it.

    expected: the split to submit; default: `dataset` under `root` (default data/<dataset>) and `split`. The zip appears when
    everything is checked. Ref-DAVIS17's masks are merged first, see `submit_ref_davis`. Raises InputError naming the first mask
    that is missing or wrong, and for a split that no benchmark scores because its ground truth is public.
    """
    _check_dataset(dataset)
    predictions, out = Path(predictions), Path(out)
    if not predictions.is_dir():
        raise InputError(f"{predictions}: no such folder of predictions; run rvos-select merge first")
    data = expected or open_dataset(dataset, Path(root or Path("data") / dataset), split)
    _check_split(dataset, data)
    check_masks_of(predictions, dataset, data.split)
    if isinstance(data, RefDavis17):
        return submit_ref_davis(predictions, data, out)
    masks = sorted(_masks(predictions, data, data.submission_layout or ""))
    return write_zip(out, ((name, check_mask_png(path, size)) for name, path, size in tracked(masks, "submit", unit="masks")))


def submit_selections(
    selections: PathLike,
    caches: Paths,
    out: PathLike,
    dataset: str | None = None,
    root: PathLike | None = None,
    split: str | None = None,
    policy: PolicyOptions = DEFAULT_POLICY,
) -> Path:
    """Write `out`, Ref-DAVIS17's zip, from selections; returns it. Where objects overlap their scores decide: PNGs have none.

    dataset, split: must be those of the caches; root: default, that of the card. Without a threshold the best track of each
    expression is selected, as the benchmark's methods do. Raises InputError as `submit` does, and for caches of another dataset,
    whose selections are merged to PNGs first.
    """
    predictions = SelectionPredictions(selections, caches, policy)
    tracks = predictions.tracks
    name, path = tracks.card.dataset, tracks.caches[0].path
    _check_dataset(name)
    data = dataset_of(tracks, dataset, None if root is None else Path(root), split)
    if data is None:
        raise InputError(
            f"{path}: the dataset, which lists the annotators of the expressions, is not at the root of the card; give --root"
        )
    if not isinstance(data, RefDavis17):
        raise InputError(f"{path}: of {name}, not ref-davis17; run rvos-select merge, then submit --predictions")
    _check_split(name, data)
    check_same_videos(tracks, data, data.video_ids())
    return submit_ref_davis(predictions, data, Path(out))


def _check_dataset(dataset: str) -> None:
    """Raises InputError for a dataset without a submission format."""
    if dataset_class(dataset).submission_layout is None:
        formats = sorted(name for name in DATASETS if dataset_class(name).submission_layout is not None)
        raise InputError(f"no submission format of dataset {dataset!r}; there are: {', '.join(formats)}")


def _check_split(dataset: str, data: Dataset) -> None:
    """Raises InputError for a split that no benchmark scores."""
    if data.has_ground_truth and data.split != data.submission_split:
        raise InputError(
            f"{data.root}: split {data.split} of {dataset} has public ground truth, so no benchmark scores it; "
            "score it with rvos-select evaluate, or give the --split that is submitted"
        )


def _masks(predictions: Path, dataset: Dataset, layout: str) -> Iterator[tuple[str, Path, tuple[int, int]]]:
    """(name in the zip, file, size) of every mask of the split. Raises InputError for a missing file."""
    for video_id in dataset.video_ids():
        video = dataset.video(video_id)
        for expression in dataset.expressions(video_id):
            for frame in video.frame_names:
                path = predictions / video_id / expression.expression_id / f"{frame}.png"
                if not path.is_file():
                    raise InputError(
                        f"{path}: the mask is missing, a submission needs every frame of every expression; run merge for it"
                    )
                yield layout.format(video=video_id, expression=expression.expression_id, frame=frame), path, video.size
