"""The record of a folder that `ask` writes: which video it is about, and which answer lies where.

<out>/
  answers.json               this record
  masks/<video>/<n>/         the masks of answer n, counted from 0
  overlay.mp4                the video with the masks of answer 0; overlay-<n>.mp4 with those of answer n
  cache/                     the tracks of the video, the words of each sentence and their scores
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError
from rvos_cache.system.files import restore, write_json

RECORD = "answers.json"
OTHER_OUT = "choose another --out"


@dataclass(frozen=True)
class Question:
    """What an answer depends on, for one video.

    run: its folder, for people; weights: digest of its module; tracks: name of the tracks cache; policy: the selection policy.
    """

    sentence: str
    run: str
    weights: str
    tracks: str
    policy: dict[str, Any]

    @property
    def key(self) -> tuple[Any, ...]:
        """Two questions of equal key have one answer."""
        return self.sentence, self.weights, self.tracks, self.policy


class Answers:
    """The answers in the folder `out`, about one video. Only for the process that has the lock of `out`.

    video: where its frames lie, for people; frames: their digest. The constructor writes the record, or reads the one that is
    there. Raises InputError if `out` has answers about other frames, or files under the names above that `ask` did not write.
    """

    def __init__(self, out: Path, video: Path, frames: str) -> None:
        self.out, self.video, self.frames, self.questions = out, video, frames, list[Question]()
        restore(out / RECORD)
        if not (out / RECORD).exists():
            for name in ("masks", "cache", "overlay.mp4"):
                self._check_free(out / name)
            self._write()
            return
        try:
            record = json.loads((out / RECORD).read_text("utf-8"))
            stored_video, stored_frames = str(record["video"]), str(record["frames"])
            self.questions = [Question(**question) for question in record["answers"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{out / RECORD}: not the record of rvos-select ask, or damaged; {OTHER_OUT}") from error
        self.video = Path(stored_video)
        if stored_frames != frames:
            same_path = stored_video == str(video)
            about = "frames that have been changed since" if same_path else "another video"
            raise InputError(f"{out}: holds answers about {about} ({stored_video}); {OTHER_OUT}, or remove the folder")

    def number(self, question: Question) -> int:
        """The number of the answer to `question`; a new one is recorded. Raises InputError if its files are not `ask`'s."""
        for n, known in enumerate(self.questions):
            if known.key == question.key:
                return n
        n = len(self.questions)
        self._check_free(self.overlay(n))
        self.questions.append(question)
        self._write()
        return n

    def overlay(self, n: int) -> Path:
        """The path of the video with the masks of answer `n`."""
        return self.out / (f"overlay-{n}.mp4" if n else "overlay.mp4")

    def masks(self, n: int, video_id: str) -> Path:
        """The folder of the masks of answer `n`."""
        return self.out / "masks" / video_id / str(n)

    def _check_free(self, path: Path) -> None:
        if path.exists() or path.is_symlink():
            raise InputError(f"{path}: is there already and was not written by rvos-select ask; {OTHER_OUT}")

    def _write(self) -> None:
        answers = [asdict(question) for question in self.questions]
        write_json(self.out / RECORD, {"video": str(self.video), "frames": self.frames, "answers": answers})
