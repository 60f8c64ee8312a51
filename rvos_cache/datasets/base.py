"""The base class of every dataset: three methods to write, and a default for everything else.

A dataset of your own is one file, used as `--dataset my_module:MyDataset`:

    class MyDataset(Dataset):
        def video_ids(self):
            return tuple(sorted(p.name for p in (self.root / self.split).iterdir()))

        def video(self, video_id):
            return folder_video(self.root / self.split / video_id, video_id)

        def expressions(self, video_id):
            return (Expression(video_id, "0", "the dog that runs", targets=None),)

With a method `ground_truth` it can be trained on and scored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from rvos_cache.datasets.samples import Sample
from rvos_cache.errors import InputError
from rvos_cache.plugins import check_overridden, check_signatures
from rvos_cache.system.progress import tracked
from rvos_cache.types import Expression, GroundTruth, Video

Protocol = Literal["video", "image", "davis"]


class Dataset(ABC):
    """One split of one dataset. Constructing it reads the expressions, never frames or masks.

    Required: `video_ids`, `video` and `expressions`. The class attributes below tell the other parts of the program how the
    dataset is scored and submitted; nothing else in the program needs to know a dataset's name.
    """

    name: str = ""
    """Name of the dataset. Default: "module:Class", which is how the commands name a dataset of the user's own."""
    protocol: Protocol = "video"
    """How predictions are scored. "video": J and F of every expression over the annotated frames of its video (MeViS,
    Ref-YouTube-VOS); "image": mAP and IoU of single frames, see `samples` (A2D-Sentences, JHMDB-Sentences, RefCOCO); "davis": J
    and F of the objects of each annotator (Ref-DAVIS17), which needs the methods of `RefDavis17`."""
    one_object: bool = False
    """Whether every expression names exactly one object; a selector may then select the single best track."""
    submission_layout: str | None = None
    """Path of a mask in the zip file that the benchmark's server takes, with the fields {video}, {expression} and {frame}
    ("davis": {annotator}, {video} and {frame}). None: no server takes predictions of this dataset."""
    submission_split: str | None = None
    """The split that is submitted although it has ground truth. Only splits without ground truth are submitted otherwise."""

    upright: bool = True
    """Whether frames are read as viewers and players show them, turned by the EXIF tag of a picture or the display matrix of a
    film; `video` gives it to `folder_video`, `file_video` or `read_image`. False where the masks belong to the stored pixels, as
    in every built-in benchmark: their code applies neither."""

    root: Path
    split: str

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        parent = next(base for base in cls.__mro__ if "name" in base.__dict__)
        if cls.name in ("", _default_name(parent)):
            cls.name = _default_name(cls)

    def __init__(self, root: Path, split: str) -> None:
        """Set `root` and `split`. A subclass calls this first and then reads its list of videos.

        Raises InputError: if the split does not exist. A subclass raises it also if a file of the split cannot be read.
        """
        self.root, self.split = Path(root), split
        self._check_split()

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """Return the splits under `root`, in the dataset's own order. Default: the names of the folders, sorted."""
        folders = Path(root).iterdir() if Path(root).is_dir() else ()
        return sorted(folder.name for folder in folders if folder.is_dir() and not folder.name.startswith("."))

    @property
    def has_ground_truth(self) -> bool:
        """Whether the split has ground truth. Default: whether the class defines `ground_truth`."""
        return type(self).ground_truth is not Dataset.ground_truth

    @abstractmethod
    def video_ids(self) -> tuple[str, ...]:
        """Return the ids of the split's videos in file order.

        Raises InputError: if the list of videos is known to be incomplete.
        """

    @abstractmethod
    def video(self, video_id: str) -> Video:
        """Return one video; its frames are read on access.

        Raises InputError: if the video is not listed or its frames are missing.
        """

    @abstractmethod
    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """Return all expressions of the video in file order; `targets` is None exactly if the split has no ground truth.

        Raises InputError: if the video is not listed or an expression cannot be read.
        """

    def expression_ids(self, video_id: str) -> tuple[str, ...]:
        """Return the ids of the video's expressions, also of those that cannot be read, so that they count as missing.

        Raises InputError: if the video is not listed.
        """
        return tuple(expression.expression_id for expression in self.expressions(video_id))

    def ground_truth(self, video_id: str) -> GroundTruth | None:
        """Return the annotated objects of the video; None exactly if the split has no ground truth.

        Object ids are unique in the split. Raises InputError: if an annotation is damaged.
        """
        return None

    def kind(self, video_id: str, expression_id: str) -> str | None:
        """Return what the expression describes ("motion", "static", ...) where the annotations tell, else None."""
        return None

    def samples(self, video_id: str) -> tuple[Sample, ...] | None:
        """Return the frames that the protocol "image" scores. None: every expression in every annotated frame.

        Raises InputError: if the annotations cannot be read.
        """
        return None

    def check(self) -> Iterator[str]:
        """Yield every fault of the split, one line each that names its file. Reads all frames and annotations."""
        messages: set[str] = set()
        owners: dict[str, str] = {}
        try:
            video_ids = self.video_ids()
        except InputError as error:
            yield str(error)
            return
        for video_id in tracked(video_ids, f"check {self.split}"):
            for message in _faults_of_video(self, video_id, owners):
                if message not in messages:
                    messages.add(message)
                    yield message

    def _check_split(self) -> None:
        """Raise InputError unless `splits` lists the split. Override it where other splits can be opened too."""
        if self.split not in self.splits(self.root):
            raise self._no_split(f"{self.root}: no split {self.split!r}")

    def _no_split(self, problem: str, hint: str = "", further: Iterable[str] = ()) -> InputError:
        """Return the error for a split that does not exist.

        problem: names the file or folder; hint: another way to fix it; further: splits that `splits` does not list.
        """
        if not self.root.is_dir():
            return InputError(f"{self.root}: no such folder; give another --root")
        existing = ", ".join(dict.fromkeys([*self.splits(self.root), *further])) or "none"
        return InputError(f"{problem}; splits of {self.root}: {existing}; give another --root or --split{hint}")


def check_dataset_class(cls: type[Dataset], title: str) -> None:
    """Check a dataset class without opening a split. Raises InputError, starting with `title`, for the first fault."""
    required = ["video_ids", "video", "expressions"]
    check_overridden(cls, Dataset, required, title)
    check_signatures(cls, Dataset, ["__init__", "splits", *required, "ground_truth", "check"], title)


def _default_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def make_expression(file: Path, video_id: str, expression_id: str, text: str, targets: tuple[str, ...] | None) -> Expression:
    """Return an Expression. Raises InputError: if it is not valid; the message names `file`."""
    try:
        return Expression(video_id, expression_id, text, targets)
    except InputError as error:
        raise InputError(f"{file}, {error}") from error


def limit_faults(faults: Iterable[str], location: str, kind: str, limit: int = 20) -> Iterator[str]:
    """Yield the first `limit` messages, then one line with the number of the others, "<location>: <n> more faults of <kind>"."""
    others = 0
    for number, fault in enumerate(faults):
        if number < limit:
            yield fault
        else:
            others += 1
    if others:
        yield f"{location}: {others} more faults of {kind}"


def _faults_of_video(dataset: Dataset, video_id: str, owners: dict[str, str]) -> Iterator[str]:
    """Yield the faults of one video. owners: object id -> the video that has it, of the videos checked so far."""
    location = f"{dataset.root}, split {dataset.split}, video {video_id}"
    video, truth, expressions = None, None, tuple[Expression, ...]()
    try:
        video = dataset.video(video_id)
        for t in range(len(video)):
            try:
                video.read(t)
            except InputError as error:
                yield str(error)
    except InputError as error:
        yield str(error)
    try:
        expressions = dataset.expressions(video_id)
    except InputError as error:
        yield str(error)
    try:
        truth = dataset.ground_truth(video_id)
    except InputError as error:
        yield str(error)
        return
    if (truth is not None) != dataset.has_ground_truth:
        expected = "ground truth" if dataset.has_ground_truth else "no ground truth"
        yield f"{location}: has_ground_truth is {dataset.has_ground_truth}, so ground_truth must return {expected}"
    for expression in expressions:
        if (expression.targets is None) == dataset.has_ground_truth:
            expected = "a tuple of object ids" if dataset.has_ground_truth else "None"
            yield f"{location}, expression {expression.expression_id}: expected targets {expected}, got {expression.targets}"
        elif truth is not None:
            try:
                truth.indices(expression.targets or ())
            except InputError as error:
                yield f"{location}, expression {expression.expression_id}: {error}"
    if truth is not None and video is not None:
        shape, size = truth.masks.shape, truth.masks.size
        if (shape[1], *size) != (len(video), *video.size):
            yield f"{location}: masks of {shape[1]} frames of {size} pixels, expected {len(video)} frames of {video.size}"
    for object_id in () if truth is None else truth.object_ids:
        if owners.setdefault(object_id, video_id) != video_id:
            yield f"{location}: object id {object_id!r} is also used in video {owners[object_id]}; make it unique in the split"
