"""How a command line ends: one line for a fault of the input, and its exit status."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NoReturn

import click

from rvos_cache.errors import InputError

if TYPE_CHECKING:
    from rvos_cache.extraction import ExtractReport


def told(reports: Mapping[str, ExtractReport]) -> None:
    """One line per cache; exit status 1 when any video failed."""
    from rvos_cache.store import format_uri

    failed = total = 0
    for where, report in reports.items():
        click.echo(f"{format_uri(where)}: {len(report.done)} done, {len(report.skipped)} were there, {len(report.failed)} failed")
        for video, error in report.failed.items():
            click.echo(f"failed {video}: {error}", err=True)
        failed += len(report.failed)
        total += len(report.done) + len(report.skipped) + len(report.failed)
    if failed:
        raise InputError(
            f"{failed} of {total} videos failed (rvos-cache info lists them); mend them and run the same command again"
        )


def run_command(command: Callable[..., object]) -> NoReturn:
    """Run a click command line: a fault of the input is one line and status 1, usage 2, Ctrl-C 130; a warning is one line."""
    warnings.showwarning = lambda message, *where: click.echo(f"warning: {' '.join(str(message).split())}", err=True)
    try:
        command(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except InputError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # Whoever read the output, `head` for one, has seen enough; nothing must be flushed to it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        what = " ".join((error.strerror or type(error).__name__).split())
        remote = "://" in str(error.filename)
        remedy = "check bucket, endpoint and credentials" if remote else "make room or choose a writable path"
        click.echo(f"error: {error.filename or 'file system'}: {what}; {remedy}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; what was finished is kept: run the same command again to go on", err=True)
        sys.exit(130)
    sys.exit(0)
