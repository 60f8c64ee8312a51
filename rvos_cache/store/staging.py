"""Names of work in progress: whose it is, and whether its writer is dead."""

from __future__ import annotations

import os
import re
import socket
import time
import uuid

HOST = socket.gethostname().replace(".", "-")
ATTEMPT = re.compile(r"(?:(?P<video>.+)\.(?P<host>[^.]*)\.(?P<pid>[0-9]{1,9})|card)\.[0-9a-f]{32}", re.DOTALL)
"""<video, "card", "probe" or "mark">.<host>.<pid>.<uuid>; the first writers left the host and process out for the card."""
DAY = 86_400
"""Seconds after which the work of another machine, whose processes cannot be asked for, counts as left behind."""


RUN = 30 * DAY
"""The same for the mark of a run, which is written once and stays as long as the run."""


def new_staging_name(name: str) -> str:
    """A name that no other process gives."""
    return f"{name}.{HOST}.{os.getpid()}.{uuid.uuid4().hex}"


def is_staging_name(name: str) -> bool:
    """Whether `name` is one that a writer gives to its work in progress."""
    return ATTEMPT.fullmatch(name) is not None


def video_of(name: str) -> str:
    """The video (or "card", "probe", "mark") that the attempt `name` is of; "" where it tells none."""
    found = ATTEMPT.fullmatch(name)
    return (found["video"] or "") if found else ""


def is_dead(name: str, written: float) -> bool:
    """Whether the attempt `name` is of a dead process of this machine, or of another machine and old.

    written: when it was last written to, in seconds since the epoch.
    """
    found = ATTEMPT.fullmatch(name)
    if found is None:
        return False
    return not _alive(int(found["pid"])) if found["host"] == HOST else is_old(name, written)


def is_old(name: str, written: float) -> bool:
    """Whether the attempt `name`, last written to then, has been left for longer than any writer takes."""
    return is_staging_name(name) and time.time() - written > (RUN if video_of(name) == "mark" else DAY)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
