"""The command line: gathers the commands, and is the only place that exits.

Nothing heavier than click is imported before a command runs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edge import __version__
from edge.commands.ask import ask
from edge.commands.batch import batch
from edge.commands.bench import bench
from edge.commands.canary import canary
from edge.commands.chat import chat
from edge.commands.devices import devices
from edge.commands.doctor import doctor
from edge.commands.export import export
from edge.commands.itrex import itrex
from edge.commands.parity import parity
from edge.commands.plan import plan
from edge.commands.quality import quality
from edge.commands.reference import reference
from edge.commands.serve import serve
from edge.commands.tune import tune
from edge.commands.ui import ui
from edge.commands.verify import verify
from edge.errors import EdgeError, OutputError
from edge.report import say

DEBUG_VARIABLE = "GLM4_EDGE_DEBUG"
_READER_GONE = 141  # as a shell has it of those that end by SIGPIPE, so that it is no command's own 1


class _ReaderGone(Exception):  # noqa: N818 - nobody's fault: `| head -1` has read enough
    """Whoever read our output has closed it."""


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Tell an output that cannot be written before click makes an exit code of 1 of it."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:  # a file's, not a stream's
            raise
        if isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL):
            raise _ReaderGone from None
        if error.errno in (errno.ENOSPC, errno.EIO):
            raise OutputError(
                f"the output cannot be written ({error.strerror or error})", hint="Look at where stdout goes."
            ) from error
        raise


class _Group(click.Group):
    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Where --help and --version write."""
        with _writing():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Where the commands do."""
        with _writing():
            return super().invoke(ctx)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="glm4-edge")
def cli() -> None:
    """GLM-4 on your own Intel laptop.

    Export a checkpoint to OpenVINO once, then talk to it:

    \b
      glm4-edge export pocket           a small real model, to try things out
      glm4-edge chat pocket
      echo "Why is the sky blue?" | glm4-edge chat pocket

    Answers go to standard output, everything else to standard error. Downloads and models exported by
    name are kept in a cache folder; the environment variable GLM4_EDGE_HOME moves it.
    """


for command in (
    export, verify, chat, ask, batch, ui, serve, devices, plan, canary, reference, parity, quality, bench, tune, doctor,
    itrex,
):  # fmt: skip
    cli.add_command(command)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a fault, 2 wrong usage, 130 interrupted, 141 the reader is gone."""
    with contextlib.suppress(ValueError):  # not the main thread: then somebody else minds signals
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it cleans up as Ctrl-C does
    _open_the_closed()
    for stream in (sys.stdout, sys.stderr):
        _lenient(stream)
    try:
        code = _run(argv)
    except (_ReaderGone, BrokenPipeError):  # the latter: of standard error, too
        code = _READER_GONE
    for stream in (sys.stdout, sys.stderr):
        _drop_unwritten(stream)
    sys.exit(code)


def _drop_unwritten(stream: Any) -> None:
    """Forget what a stream could not take: Python would try again at its end, complain, and end with 120."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_the_closed() -> None:
    """Let standard streams that are closed (`2>&-`, pythonw.exe) lead nowhere: nothing else may take their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def _lenient(stream: Any) -> None:
    """Write "?" for what the stream's encoding lacks: cp1252, which Windows gives a file, has neither → nor 模型.

    A stream that has a way of its own to write such characters keeps it.
    """
    if getattr(stream, "errors", None) == "strict":
        stream.reconfigure(errors="replace")


def _run(argv: list[str] | None) -> int:
    try:
        return cli.main(args=argv, prog_name="glm4-edge", standalone_mode=False) or 0
    except EdgeError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        say(f"Error: {error.message}.\n{error.hint}")
        return error.exit_code
    except PermissionError as error:
        from edge.files import HOME_VARIABLE

        say(f"Error: {error.filename or 'a file'} may not be read or written ({error.strerror}).\n"
             f"Mend its permissions; if it is the cache, {HOME_VARIABLE} names another.")  # fmt: skip
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("Interrupted.")
        return 130
    except _ReaderGone:
        raise
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        say(f"Error: this should not have happened ({type(error).__name__}: {error}).\n"
             f"Please report it; with {DEBUG_VARIABLE}=1 the same command shows where.")  # fmt: skip
        return 1
