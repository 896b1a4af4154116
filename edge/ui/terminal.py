"""Talking to a model in a terminal or through a pipe: answers on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import errno
import locale
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

import click

from edge.errors import EdgeError, OutputError, UsageError
from edge.messages import Sampling, Usage
from edge.runtime.context import Conversation
from edge.runtime.interface import ChatEngine

HELP = """\
/help         this list
/system TEXT  set the system prompt; without TEXT show it, with "" remove it
/clear        forget the conversation, keep the system prompt
/save FILE    write the conversation as JSON; without FILE, to its last file
/load FILE    go on with a saved conversation
/stats        tokens and times so far, and what was read anew
/exit         leave; so does Ctrl-D
Ctrl-C stops an answer. Alt-Enter starts a new line, and pasted text may have several."""
# A model's text must not steer the terminal: no escape sequences, no carriage returns.
_NOT_SHOWN = {code: None for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class ReaderGone(Exception):  # noqa: N818 - nobody's fault: `| head -1` has read enough
    """Whoever read our stdout has closed it."""


def read_prompt(stream: BinaryIO | None = None, command: str = "chat") -> str:
    """All of piped stdin as one prompt.

    UTF-8, as files are; else what the system's locale says, as Windows' own commands write.

    Raises:
        UsageError: there is nothing in it.
    """
    data = (stream or sys.stdin.buffer).read()
    first = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(first)
    except UnicodeDecodeError:
        text = data.decode(locale.getpreferredencoding(False), errors="replace")
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise UsageError(
            "the input is empty", hint=f'Pipe in a question: echo "Why is the sky blue?" | glm4-edge {command}'
        )
    return text


def answer_once(engine: ChatEngine, prompt: str, *, sampling: Sampling, system: str | None = None) -> Usage | None:
    """Answer one prompt on stdout, and say on stderr how fast it was.

    Returns None where the reader closed the pipe early, as `| head -1` does: that is no fault.

    Raises:
        EdgeError: what `engine.stream` raises.
    """
    conversation = Conversation(system or None)
    conversation.ask(prompt)
    out = _Output(sys.stdout)
    usage = None
    try:
        with contextlib.closing(engine.stream(conversation.messages(), sampling)) as chunks:
            for chunk in chunks:
                out.write(chunk.text)
                if chunk.notice:
                    out.end_line()
                    _quiet(chunk.notice)
                usage = chunk.usage or usage
        out.end_line()
    except ReaderGone:
        return None
    if usage is not None:
        _quiet(stats_line(usage))
    out.say_what_was_lost()
    return usage


def run_chat(
    engine: ChatEngine,
    *,
    sampling: Sampling,
    system: str | None = None,
    read_line: Callable[[], str] | None = None,
) -> None:
    """Talk until /exit or Ctrl-D. A fault inside the conversation is shown, and the conversation goes on.

    Args:
        engine: loaded; it is warmed up while the user types.
        sampling: for every answer.
        system: the system prompt; None leaves it to the chat template.
        read_line: gives one message or command, raises EOFError at the end; a line editor if None.
    """
    warming = threading.Thread(target=_warm_up, args=(engine,), name="warm-up")
    warming.start()
    chat = _Chat(engine, sampling, Conversation(system or None))
    _quiet(f"{engine.name} on {engine.device}, {engine.context_length:,} tokens of context. /help lists the commands.")
    read_line = read_line or _line_editor()
    with contextlib.suppress(ReaderGone):
        while chat.goes_on:
            try:
                chat.take(read_line())
            except EOFError:
                break
            except KeyboardInterrupt:
                _quiet("Ctrl-D or /exit leaves.")
    if warming.is_alive():
        _quiet("Waiting for the device to end its first step …")


def stats_line(usage: Usage) -> str:
    """One line of numbers for one answer."""
    parts = [] if usage.ttft_seconds is None else [f"TTFT {usage.ttft_seconds:.2f} s"]
    if usage.tokens_per_second is not None:
        parts.append(f"{usage.tokens_per_second:.1f} tokens/s")
    parts.append(_count(usage.completion_tokens, "token"))
    ending = {"stop": None, "length": "cut at the token limit", "cancelled": "stopped"}[usage.finish_reason]
    return ", ".join(parts + ([ending] if ending else []))


class _Chat:
    """The state of one conversation, and what each line does to it."""

    def __init__(self, engine: ChatEngine, sampling: Sampling, conversation: Conversation) -> None:
        self._engine = engine
        self._sampling = sampling
        self._conversation = conversation
        self._out = _Output(sys.stdout)
        self._file: Path | None = None
        self._last: Usage | None = None
        self._answers = self._tokens = 0
        self.goes_on = True

    def take(self, line: str) -> None:
        """Do what the line says: a command, or a message to be answered."""
        if not line.strip():
            return
        try:
            if line.startswith("/"):
                self._command(line)
            else:
                self._answer(line.strip())
        except EdgeError as error:
            click.echo(f"{_sentence(error.message)} {error.hint}", err=True)

    def _command(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        commands = {
            "/help": lambda _: click.echo(HELP, err=True), "/system": self._set_system, "/clear": self._clear,
            "/save": self._save, "/load": self._load, "/stats": self._stats, "/exit": self._exit,
        }  # fmt: skip
        command = commands.get(word.strip().lower())
        if command is None:
            raise UsageError(
                f"'{word.strip()}' is no command",
                hint="/help lists them; a space before the slash sends the line as a message.",
            )
        command(rest.strip())

    def _answer(self, text: str) -> None:
        conversation, usage = self._conversation, None
        pieces: list[str] = []
        conversation.ask(text)
        try:
            with _ctrl_c_calls(self._engine.cancel):
                stream = self._engine.stream(conversation.messages(), self._sampling)
                with contextlib.closing(stream) as chunks:
                    for chunk in chunks:
                        if chunk.notice:
                            self._out.end_line()
                            _quiet(chunk.notice)
                        if chunk.restart:
                            pieces.clear()
                        pieces.append(chunk.text)
                        usage = chunk.usage or usage
                        self._out.write(chunk.text)
        except KeyboardInterrupt:  # only where signals cannot be handled: not in the main thread
            pass
        except BaseException:
            self._out.end_line()
            conversation.take_back()
            raise
        self._out.end_line()
        said, reason = "".join(pieces), usage.finish_reason if usage else "cancelled"
        if usage is not None:
            self._last = usage
            self._tokens += usage.completion_tokens
        if reason == "cancelled" and not said:
            conversation.take_back()
            _quiet("Stopped before the answer began; the question is forgotten.")
            return
        conversation.answer(said, reason)
        self._answers += 1
        _quiet(stats_line(usage) if usage else "Stopped.")
        self._out.say_what_was_lost()

    def _set_system(self, text: str) -> None:
        if not text:
            _quiet(self._conversation.system or "No system prompt is set; the chat template may have one of its own.")
            return
        self._conversation.system = text if text.strip("\"'") else None
        _quiet("The system prompt is set." if self._conversation.system else "The system prompt is removed.")

    def _clear(self, _: str) -> None:
        self._conversation = Conversation(self._conversation.system)
        self._file = None
        _quiet("The conversation is forgotten.")

    def _save(self, name: str) -> None:
        path = _path(name) or self._file
        if path is None:
            raise UsageError("/save needs a file", hint="For example: /save talk.json")
        if path != self._file and path.exists():
            raise OutputError(f"{path} exists and is not overwritten", hint="Name another file.")
        self._conversation.save(path, self._engine.name)
        self._file = path
        _quiet(f"Saved {_count(len(self._conversation.turns), 'message')} to {path}.")

    def _load(self, name: str) -> None:
        path = _path(name)
        if path is None:
            raise UsageError("/load needs a file", hint="For example: /load talk.json")
        self._conversation, self._file = Conversation.load(path), path
        _quiet(f"Loaded {_count(len(self._conversation.turns), 'message')} from {path}.")

    def _stats(self, _: str) -> None:
        used = self._engine.count_tokens(self._conversation.messages())
        limit = self._engine.context_length
        filled = f"{used:,} of {limit:,} tokens"
        if used > limit:
            filled = f"{limit:,} tokens; the conversation has {used:,}, and its oldest turns are no longer read"
        lines = [
            f"model     {self._engine.name} on {self._engine.device}",
            f"context   {filled}",
            f"answers   {self._answers:,}, {_count(self._tokens, 'token')}",
        ]
        if self._last is not None:
            tpot = self._last.tpot_seconds
            lines.append(f"last      {stats_line(self._last)}" + (f", TPOT {tpot * 1e3:.1f} ms" if tpot else ""))
            lines.append(f"prompt    {_reuse(self._last)}")
        click.echo("\n".join(lines), err=True)

    def _exit(self, _: str) -> None:
        self.goes_on = False


class _Output:
    """Stdout, a piece at a time, whatever its encoding and however long its reader stays."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = stream.isatty()
        self._encoding = stream.encoding or "utf-8"
        self._lost = self._inside_line = False
        with contextlib.suppress(AttributeError):  # a stand-in for stdout may have no such method
            stream.reconfigure(errors="replace")  # type: ignore[attr-defined]

    def write(self, text: str) -> None:
        """Show `text` at once."""
        text = text.translate(_NOT_SHOWN) if self._shown else text
        if not text:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            if not (isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)):
                raise OutputError(
                    f"the answer cannot be written ({error.strerror or error})", hint="Look at where stdout goes."
                ) from error
            with contextlib.suppress(OSError, ValueError):  # or Python complains when it flushes at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise ReaderGone from None
        self._inside_line = not text.endswith("\n")
        self._lost = self._lost or text != text.encode(self._encoding, "replace").decode(self._encoding, "replace")

    def end_line(self) -> None:
        """Start a new line unless one has just started."""
        if self._inside_line:
            self.write("\n")

    def say_what_was_lost(self) -> None:
        """Say so if the encoding of stdout had no room for some of the text."""
        if self._lost:
            self._lost = False
            _quiet(f"stdout is {self._encoding} here and lacks some of these characters; PYTHONUTF8=1 makes it UTF-8.")


def _reuse(usage: Usage) -> str:
    """How much of the last prompt had to be read."""
    read = f"{usage.prompt_tokens:,} tokens"
    if usage.cached_tokens is None:
        return f"{read}; how many of them were kept from before is not known here"
    return (
        f"{read}, {usage.cached_tokens:,} of them kept from before, {usage.prompt_tokens - usage.cached_tokens:,} read"
    )


def _quiet(text: str) -> None:
    """A line beside the conversation: on stderr, dimmed where that can be seen."""
    dim = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    click.echo(click.style(text, dim=True) if dim else text, err=True)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _path(name: str) -> Path | None:
    name = name.strip("\"'")
    return Path(name).expanduser().absolute() if name else None


def _warm_up(engine: ChatEngine) -> None:
    with contextlib.suppress(EdgeError):  # the first answer meets the same fault, and says it
        engine.warm_up()


@contextlib.contextmanager
def _ctrl_c_calls(function: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C call `function` instead of raising at whatever line happens to run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: function())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _line_editor() -> Callable[[], str]:
    """Reads a line with history and multi-line paste; the same on Linux, macOS and Windows."""
    screen = next((stream for stream in (sys.stderr, sys.stdout) if stream.isatty()), None)
    if screen is None:
        return input
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    keys.add("escape", "enter")(new_line)
    session: PromptSession[str] = PromptSession("> ", output=create_output(screen), key_bindings=keys)
    return lambda: str(session.prompt())
