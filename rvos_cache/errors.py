"""The one error a person is meant to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn


class InputError(Exception):
    """Something outside the program is wrong: a file, a setting, a disk.

    The message is one line: what was wanted, what came, which file, what to do. The command lines print it
    without a traceback and exit with status 1; everything else that is raised is a bug and keeps its traceback.
    """


def run_command(command: Callable[..., object]) -> NoReturn:
    """Run a click command line: a fault of the input is one line and status 1, usage 2, Ctrl-C 130."""
    import sys

    import click

    try:
        command(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except InputError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except OSError as error:
        what = error.strerror or type(error).__name__
        click.echo(f"error: {error.filename or 'file system'}: {what}; make room or choose a writable path", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; what was finished is kept: run the same command again to go on", err=True)
        sys.exit(130)
    sys.exit(0)
