"""Several processes: results in order, tasks only as they are needed, and a process that dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_select.evaluation.processes import in_order
from rvos_select.evaluation.video import MergedMasks, Row, Task, score_video


@pytest.mark.slow
def test_processes_read_only_the_next_tasks() -> None:
    """The first result of two processes is there before a tenth of 1000 tasks has been made."""
    created = []

    def tasks() -> Iterator[Task]:
        for i in range(1000):
            created.append(i)
            yield Task((), (), RleMasks.empty(0, 0, (1, 1)), (), MergedMasks(), (str(i),))

    rows = in_order(score_video, tasks(), 2)
    assert next(rows) == [Row("0")]
    assert len(created) < 100
    assert [row.key for of_task in rows for row in of_task] == [str(i) for i in range(1, 1000)]


def _dies(task: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return task


def test_a_killed_process_is_one_line() -> None:
    with pytest.raises(InputError, match="a process was killed"):
        list(in_order(_dies, range(5), 2))
