"""A temporary folder of an object, deleted with it or at the end of the process."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path


def folder_of(owner: object) -> Path:
    """A new folder that lives as long as `owner`. `tempfile.TemporaryDirectory` warns where nobody has closed it."""
    folder = Path(tempfile.mkdtemp(prefix="rvos-contract-"))
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return folder
