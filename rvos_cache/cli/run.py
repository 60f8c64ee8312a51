"""The end of a command line: one line for an error of the input, and the exit status."""

from __future__ import annotations

import errno
import io
import logging
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from rvos_cache.errors import InputError
from rvos_cache.system.counts import counted
from rvos_cache.system.interrupts import repeat_lost_interrupts

if TYPE_CHECKING:
    from rvos_cache.extraction import ExtractReport


class Resumable(click.Command):
    """A command that goes on where it was stopped when it is run again. option: what its command line needs for that."""

    def __init__(self, *arguments: Any, option: str = "", **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.option = option


def print_reports(reports: Mapping[str, ExtractReport]) -> None:
    """One line per cache, named by the keys. Raises InputError if any video failed."""
    from rvos_cache.store import format_uri

    failed = total = 0
    for cache, report in reports.items():
        click.echo(f"{format_uri(cache)}: {len(report.done)} done, {len(report.skipped)} were there, {len(report.failed)} failed")
        for video, error in report.failed.items():
            click.echo(f"failed {video}: {error}", err=True)
        failed += len(report.failed)
        total += len(report.done) + len(report.skipped) + len(report.failed)
    if failed:
        raise InputError(
            f"{failed} of {counted(total, 'video')} failed (rvos-cache info lists them); fix them and run the same command again"
        )


def _interrupted(program: object, words: Sequence[str]) -> str:
    """The line after Ctrl-C, with the command that goes on. words: the command line."""
    command, rest = program, list(words[1:])
    while isinstance(command, click.Group) and rest:
        command = command.commands.get(rest.pop(0))
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("pipelines."):
        start = [Path(sys.executable).name, "-m", spec.name.removesuffix(".__main__")]
    else:
        # As a program on the PATH is typed, else by its path.
        name = Path(words[0]).name
        start = [name if shutil.which(name) else words[0]]
    again = [*start, *words[1:]]
    if not isinstance(command, Resumable) or not _has_output(words):
        return f"interrupted; nothing was kept; start again with: {shlex.join(again)}"
    if command.option and command.option not in again:
        again.append(command.option)
    return f"interrupted; what was finished is kept; go on with: {shlex.join(again)}"


def _has_output(words: Sequence[str]) -> bool:
    """Whether there is something at the --out of a command line; True where it gives none, or a place that is no path."""
    given = [value for option, value in zip(words, words[1:]) if option == "--out"]
    return not given or "://" in given[-1] or Path(given[-1]).exists()


def run_command(command: Callable[..., object]) -> NoReturn:
    """Run a click command line and exit. Errors of the input, and warnings, are one line each.

    Exit status: 0 success, 1 an error of the input or the disk, 2 wrong usage, 130 Ctrl-C.
    """
    warnings.showwarning = lambda message, *where: click.echo(f"warning: {' '.join(str(message).split())}", err=True)
    repeat_lost_interrupts()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # What the terminal's encoding lacks, and file names that are not text, are escaped as on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command(standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, NoArgsIsHelpError):
            error.show()
        else:
            context = getattr(error, "ctx", None)
            where = f"; {context.command_path} --help lists the options" if context is not None else ""
            click.echo(f"error: {' '.join(error.format_message().split()).rstrip('.')}{where}", err=True)
        sys.exit(error.exit_code)
    except InputError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of the output (for example `head`) has closed it; nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        problem = " ".join((error.strerror or type(error).__name__).split())
        remote = "://" in str(error.filename)
        # Below /proc no folder can be made, for root neither, and the system says that it does not exist.
        if not remote and error.errno == errno.ENOENT:
            problem = f"cannot be written or is not there ({problem})"
        fix = "check bucket, endpoint and credentials" if remote else "make room or choose a writable path"
        click.echo(f"error: {error.filename or 'file system'}: {problem}; {fix}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        # Of tasks that the interruption left.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        click.echo(_interrupted(command, sys.argv), err=True)
        sys.exit(130)
    sys.exit(0)
