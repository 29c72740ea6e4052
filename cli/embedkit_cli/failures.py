"""What a failure prints and which exit code it gives; imported only when something failed."""

from __future__ import annotations

import errno
import sys

import click

from embedkit.errors import EmbedkitError
from embedkit_cli.output import printable

BUG, INPUT = 1, 2


def report(error: BaseException, debug: bool = False) -> int:
    """Print one sentence on stderr (and the traceback where `debug`), return the exit code."""
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return _say("interrupted: nothing that was stored is lost; run the same command again", INPUT)
    if isinstance(error, click.ClickException):
        return _say(_usage(error), INPUT)
    if isinstance(error, EmbedkitError):
        return _say(f"error: {error}", INPUT)
    if isinstance(error, OSError):
        return _say(f"error: {_system(error)}", INPUT)
    if isinstance(error, MemoryError):
        return _say("error: out of memory: use a smaller --token-budget, or a machine with more", INPUT)
    return _say(
        f"internal error: {type(error).__name__}: {error} — a bug in embedkit; please report it with the "
        "output of the same command and --debug",
        BUG,
    )


def _say(message: str, code: int) -> int:
    click.echo(printable(message), err=True, file=sys.stderr)
    return code


def _usage(error: click.ClickException) -> str:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message()
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    where = f" (`{context.command_path} --help` shows how)" if context is not None else ""
    return f"error: {message[:1].lower()}{message[1:]}{where}"


def _system(error: OSError) -> str:
    # A bare OSError from a library has no errno: its text is all there is.
    path = f": {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the device{path}: free some, or choose another place"
    if error.errno == errno.EFBIG:
        return f"the file may not grow further{path}: raise the file size limit (ulimit -f)"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission{path}: choose a place you may use, or change its permissions"
    if error.errno == errno.EMFILE:
        return "too many open files: raise the limit (ulimit -n)"
    reason = error.strerror or str(error) or type(error).__name__
    return f"{reason[:1].lower()}{reason[1:]}{path}"
