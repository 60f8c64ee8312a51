"""Names of staging folders and files: which video and which process they belong to, and whether that process is dead."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path


def host_name() -> str:
    """A name of this machine and container since it was started, within which a process id means one process.

    The host name alone does not do: containers may share one, and many virtual machines are called "localhost".
    """
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text("ascii"))
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return f"{socket.gethostname().replace('.', '-')}-{hashlib.sha256(''.join(parts).encode()).hexdigest()[:8]}"


HOST = host_name()
STAGING_NAME = re.compile(r"(?:(?P<video>.+)\.(?P<host>[^.]*)\.(?P<pid>[0-9]{1,9})|card)\.[0-9a-f]{32}", re.DOTALL)
"""<video, "card", "probe" or "mark">.<host>.<pid>.<uuid>; early versions wrote card.<uuid>."""
DAY = 86_400
VIDEO_LIFETIME = DAY
"""Seconds after which the staged video of another machine counts as abandoned: its processes cannot be asked."""
MARKER_LIFETIME = 30 * DAY
"""The same for the marker file of a run, which is written once and stays as long as the run."""


def new_staging_name(name: str) -> str:
    """A name for the staging of `name` that no other process uses."""
    return f"{name}.{HOST}.{os.getpid()}.{uuid.uuid4().hex}"


def is_staging_name(name: str) -> bool:
    """Whether `name` has the form that `new_staging_name` gives."""
    return STAGING_NAME.fullmatch(name) is not None


def staged_video_id(name: str) -> str:
    """The video (or "card", "probe", "mark") that the staging `name` is for; "" if the name has none."""
    match = STAGING_NAME.fullmatch(name)
    return (match["video"] or "") if match else ""


def is_abandoned(name: str, modified: float) -> bool:
    """Whether the staging `name` belongs to a dead process of this machine, or is expired.

    modified: the time of the last write, in seconds since the epoch.
    """
    match = STAGING_NAME.fullmatch(name)
    if match is None:
        return False
    return not _is_alive(int(match["pid"])) if match["host"] == HOST else is_expired(name, modified)


def is_expired(name: str, modified: float) -> bool:
    """Whether the staging `name` was last written longer ago than any writer takes. modified: as in `is_abandoned`."""
    lifetime = MARKER_LIFETIME if staged_video_id(name) == "mark" else VIDEO_LIFETIME
    return is_staging_name(name) and time.time() - modified > lifetime


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
