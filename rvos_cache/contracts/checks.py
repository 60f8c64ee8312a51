"""One check of a plugin and its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from rvos_cache.errors import InputError
from rvos_cache.plugins import describe_error

Case = TypeVar("Case")


class CheckFailed(Exception):
    """The plugin breaks the contract; the message is one line."""


class CheckSkipped(Exception):
    """The check does not apply to this plugin; the message says why."""


@dataclass(frozen=True)
class CheckResult:
    """Result of one check. message: why it failed or was skipped, one line."""

    title: str
    status: Literal["ok", "FAILED", "skipped"]
    message: str = ""


def run_check(title: str, check: Callable[[Case], None], case: Case) -> CheckResult:
    """The result of `check(case)`, where any exception but CheckSkipped is a failure."""
    try:
        check(case)
    except CheckSkipped as reason:
        return CheckResult(title, "skipped", str(reason))
    except (CheckFailed, InputError) as error:
        return CheckResult(title, "FAILED", " ".join(str(error).split()))
    except Exception as error:
        return CheckResult(title, "FAILED", describe_error(error))
    return CheckResult(title, "ok")
