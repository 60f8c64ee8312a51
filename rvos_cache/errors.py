"""The one error a person is meant to read."""

from __future__ import annotations


class InputError(Exception):
    """Something outside the program is wrong: a file, a setting, a disk.

    The message is one line: what was wanted, what came, which file, what to do. The command lines print it
    without a traceback and exit with status 1; everything else that is raised is a bug and keeps its traceback.
    """
