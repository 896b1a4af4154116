from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.errors import ContextError, UsageError
from edge.messages import Sampling, Usage
from edge.runtime.echo import EchoEngine
from edge.ui import terminal


def chat(*lines: str | type[BaseException], engine: EchoEngine | None = None, **options: object) -> None:
    """Type the lines, then Ctrl-D; an exception stands for its key."""
    script: Iterator[str | type[BaseException]] = iter((*lines, EOFError))

    def read_line() -> str:
        line = next(script)
        if isinstance(line, str):
            return line
        raise line

    terminal.run_chat(engine or EchoEngine(), sampling=Sampling(), read_line=read_line, **options)  # type: ignore[arg-type]


def piped(script: str, data: bytes, **changes: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", script], input=data, capture_output=True, timeout=60, check=False,
        env={**os.environ, **changes},
    )  # fmt: skip


ONCE = (
    "from edge.ui import terminal\nfrom edge.runtime.echo import EchoEngine\nfrom edge.messages import Sampling\n"
    "terminal.answer_once(EchoEngine(context_length=10**6), terminal.read_prompt(), sampling=Sampling())"
)


class TestOnce:
    def test_the_answer_alone_is_on_stdout(self, capsys: pytest.CaptureFixture[str]) -> None:
        usage = terminal.answer_once(EchoEngine(), "Hi 你好", sampling=Sampling())
        out, err = capsys.readouterr()
        assert out == "Hi 你好\n"
        assert err.startswith("TTFT ") and err.count("\n") == 1
        assert "tokens/s" in err
        assert usage is not None and usage.finish_reason == "stop"

    def test_no_second_newline(self, capsys: pytest.CaptureFixture[str]) -> None:
        terminal.answer_once(EchoEngine(), "Hi\n", sampling=Sampling())
        assert capsys.readouterr().out == "Hi\n"

    def test_the_system_prompt_is_given(self) -> None:
        usage = terminal.answer_once(EchoEngine(), "Hi", sampling=Sampling(), system="123")
        assert usage is not None and usage.prompt_tokens == 5

    def test_errors_come_out(self) -> None:
        with pytest.raises(ContextError):
            terminal.answer_once(EchoEngine(context_length=2), "Hi", sampling=Sampling())

    def test_a_real_pipe(self) -> None:
        done = piped(ONCE, "What?\r\nTwo 你好 lines\n".encode(), PYTHONIOENCODING="utf-8")
        assert done.returncode == 0
        assert done.stdout.replace(b"\r\n", b"\n") == "What?\nTwo 你好 lines\n".encode()
        assert b"\x1b" not in done.stderr

    def test_a_narrow_encoding_is_no_crash_and_is_explained(self) -> None:
        done = piped(ONCE, "héé 你好".encode(), PYTHONIOENCODING="cp1252")
        assert done.returncode == 0
        assert done.stdout.strip() == "héé ??".encode("cp1252")
        assert b"cp1252" in done.stderr and b"PYTHONUTF8=1" in done.stderr

    @pytest.mark.skipif(sys.platform == "win32", reason="uses a POSIX pipe")
    def test_a_reader_that_leaves_early_is_no_fault(self) -> None:
        data = b"x\n" * 100_000
        process = subprocess.Popen(
            [sys.executable, "-c", ONCE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(data)
        process.stdin.close()
        assert process.stdout.readline() == b"x\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


class TestReadPrompt:
    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (b"Hi\n", "Hi"), ("你好\n".encode(), "你好"), (b"\xef\xbb\xbfHi\r\nyou\r\n", "Hi\nyou"),
            ("Hi 你好".encode("utf-16"), "Hi 你好"), (b"\n\n a \n", "a"),
        ],
    )  # fmt: skip
    def test_it_reads(self, data: bytes, expected: str) -> None:
        assert terminal.read_prompt(io.BytesIO(data)) == expected

    def test_what_is_no_utf8_is_read_as_the_locale_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("locale.getpreferredencoding", lambda _: "gbk")
        assert terminal.read_prompt(io.BytesIO("你好".encode("gbk"))) == "你好"

    @pytest.mark.parametrize("data", [b"", b" \n\t\r\n", b"\xef\xbb\xbf"])
    def test_nothing_is_a_sentence(self, data: bytes) -> None:
        with pytest.raises(UsageError, match="the input is empty"):
            terminal.read_prompt(io.BytesIO(data))


class TestChat:
    def test_answers_on_stdout_the_rest_on_stderr(self, capsys: pytest.CaptureFixture[str]) -> None:
        chat("Hello", "  ", "/help", " /usr is a folder", "/stats")
        out, err = capsys.readouterr()
        assert out == "Hello\n/usr is a folder\n"
        assert "/save FILE" in err
        assert err.count("TTFT") == 3

    def test_the_conversation_grows_and_is_cleared(self, capsys: pytest.CaptureFixture[str]) -> None:
        chat("/system 123", "ab", "cd", "/stats", "/clear", "/stats", "/system")
        err = capsys.readouterr().err
        assert "context   11 of 4,096 tokens" in err
        assert "context   3 of 4,096 tokens" in err
        assert "answers   2, 6 tokens" in err
        assert err.rstrip().endswith("123")

    def test_system(self, capsys: pytest.CaptureFixture[str]) -> None:
        chat("/system", '/system ""', "/system", system="Be brief.")
        lines = capsys.readouterr().err.splitlines()[1:]
        assert lines[0] == "Be brief."
        assert "removed" in lines[1]
        assert "No system prompt" in lines[2]

    @pytest.mark.parametrize("line", ["/nope", "/", "/savefile x", "//"])
    def test_an_unknown_command_is_one_sentence(self, line: str, capsys: pytest.CaptureFixture[str]) -> None:
        chat(line, "ok")
        out, err = capsys.readouterr()
        assert f"'{line.split()[0]}' is no command" in err
        assert out == "ok\n"

    def test_exit(self, capsys: pytest.CaptureFixture[str]) -> None:
        chat("/exit", "not read")
        assert capsys.readouterr().out == ""

    def test_ctrl_c_at_the_prompt_is_a_hint(self, capsys: pytest.CaptureFixture[str]) -> None:
        chat(KeyboardInterrupt, "on")
        out, err = capsys.readouterr()
        assert "Ctrl-D or /exit leaves" in err
        assert out == "on\n"

    def test_a_message_too_long_is_a_sentence_and_is_forgotten(self, capsys: pytest.CaptureFixture[str]) -> None:
        chat("x" * 30, "ab", engine=EchoEngine(context_length=20))
        out, err = capsys.readouterr()
        assert "30 tokens" in err and "Make the message shorter" in err
        assert out == "ab\n"

    def test_the_system_prompt_reaches_the_engine(self, capsys: pytest.CaptureFixture[str]) -> None:
        chat("/stats", system="1234567")
        assert "context   7 of" in capsys.readouterr().err


class TestFiles:
    def test_round_trip(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "my talk.json"
        chat("/system S", "你好", f"/save {path}")
        chat(f'/load "{path}"', "/system", "/stats", "again", "/save")
        err = capsys.readouterr().err
        assert f"Saved 2 messages to {path}." in err
        assert f"Loaded 2 messages from {path}." in err
        content = json.loads(path.read_text(encoding="utf-8"))
        assert (content["system"], content["model"]) == ("S", "echo")
        assert [message["content"] for message in content["messages"]] == ["你好", "你好", "again", "again"]

    def test_a_file_of_somebody_else_is_not_overwritten(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "thesis.json"
        path.write_text("dear")
        chat("Hi", f"/save {path}")
        assert path.read_text() == "dear"
        assert "is not overwritten" in capsys.readouterr().err

    def test_after_clear_the_old_file_is_safe(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "talk.json"
        chat("Hi", f"/save {path}", "/clear", "other", "/save", f"/save {path}")
        assert "Hi" in path.read_text(encoding="utf-8")
        err = capsys.readouterr().err
        assert "/save needs a file" in err and "is not overwritten" in err

    @pytest.mark.parametrize("command", ["/save", "/load"])
    def test_without_a_name(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        chat(command)
        assert f"{command} needs a file" in capsys.readouterr().err

    def test_a_bad_file_leaves_the_conversation(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        bad = tmp_path / "bad.json"
        bad.write_text("{")
        chat("ab", f"/load {bad}", f"/load {tmp_path / 'none.json'}", f"/save {bad / 'x'}", "/stats")
        err = capsys.readouterr().err
        assert "is no saved conversation" in err
        assert "cannot be read" in err
        assert f"There is no folder {bad}" in err
        assert "context   4 of" in err


class TestInterrupt:
    @pytest.fixture
    def ctrl_c(self) -> Iterator[Callable[[float], None]]:
        """Sends this process a real SIGINT after so many seconds."""
        timers = []

        def after(seconds: float) -> None:
            timers.append(threading.Timer(seconds, signal.raise_signal, [signal.SIGINT]))
            timers[-1].start()

        yield after
        for timer in timers:
            timer.join()

    def test_the_answer_stops_and_its_part_is_kept(
        self, ctrl_c: Callable[[float], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "talk.json"
        ctrl_c(0.4)
        chat("x" * 1000, f"/save {path}", "on", engine=EchoEngine(seconds_per_token=0.01))
        out, err = capsys.readouterr()
        said = json.loads(path.read_text(encoding="utf-8"))["messages"][1]
        assert 0 < len(said["content"]) < 1000
        assert said["finish_reason"] == "cancelled"
        assert out == said["content"] + "\non\n"
        assert "stopped" in err

    def test_before_the_first_token_the_question_is_forgotten(
        self, ctrl_c: Callable[[float], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        ctrl_c(0.2)
        chat("first", "/stats", engine=EchoEngine(prefill_seconds=1.5))
        out, err = capsys.readouterr()
        assert out == ""
        assert "the question is forgotten" in err
        assert "context   0 of" in err

    def test_python_s_own_handler_is_back_afterwards(self, capsys: pytest.CaptureFixture[str]) -> None:
        before = signal.getsignal(signal.SIGINT)
        chat("Hi")
        assert signal.getsignal(signal.SIGINT) is before


def test_the_model_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        encoding = "utf-8"  # type: ignore[assignment]

        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    terminal.answer_once(EchoEngine(), "a\x1b[31mb\rc\x07\x9bd\te\n", sampling=Sampling())
    assert screen.getvalue() == "a[31mbcd\te\n"


def test_stats_of_a_conversation_that_outgrew_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    chat("x" * 9, "y" * 8, "/system zzzz", "/Stats", engine=EchoEngine(context_length=30))
    assert "context   30 tokens; the conversation has 34, and its oldest turns are no longer read" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("usage", "line"),
    [
        (Usage(1, 1, None, None, "stop"), "1 token"),
        (Usage(1, 1, 0.5, None, "length"), "TTFT 0.50 s, 1 token, cut at the token limit"),
        (Usage(1, 1200, 0.5, 0.025, "cancelled"), "TTFT 0.50 s, 40.0 tokens/s, 1,200 tokens, stopped"),
    ],
)
def test_stats_line(usage: Usage, line: str) -> None:
    assert terminal.stats_line(usage) == line


# The child takes the pseudo-terminal for its own, so that Ctrl-C reaches it as a signal.
CHAT = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from edge.messages import Sampling
from edge.runtime.echo import EchoEngine
from edge.ui import terminal
terminal.run_chat(EchoEngine(seconds_per_token=0.01), sampling=Sampling())
"""


class Child:
    """A program on a pseudo-terminal.

    Not `pexpect.spawn`: that forks, and Python code in a fork of a process that has run OpenVINO crashes.
    """

    def __init__(self, **environment: str) -> None:
        import fcntl
        import pty
        import struct
        import termios

        from pexpect.fdpexpect import fdspawn

        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHAT], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environment},
        )  # fmt: skip
        os.close(theirs)
        self._terminal = fdspawn(ours, encoding="utf-8", timeout=60)

    def expect(self, pattern: str) -> str:
        """Wait for it, and return what came before."""
        self._terminal.expect(pattern)
        return str(self._terminal.before)

    def prompt(self) -> None:
        """Wait until the line editor listens."""
        self.expect(r"\x1b\[\?2004h")

    def send(self, keys: str) -> None:
        self._terminal.send(keys)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._terminal.close()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
class TestPseudoTerminal:
    @pytest.fixture
    def start(self) -> Iterator[Callable[..., Child]]:
        children = []

        def start(**environment: str) -> Child:
            children.append(Child(**environment))
            return children[-1]

        yield start
        for child in children:
            child.close()

    def test_a_conversation(self, start: Callable[..., Child], tmp_path: Path) -> None:
        child = start()
        child.prompt()
        child.send("hello 你好\r")
        child.expect(r"hello 你好\r\n.*tokens/s")
        child.prompt()
        child.send("y" * 60 + "z" * 300 + "\r")
        child.expect("yyyyzzzz")  # what was typed
        child.expect(r"2004l.*yyyy")  # the answer
        child.send("\x03")
        child.expect("stopped")
        child.prompt()
        child.send(f"/save {tmp_path / 'talk.json'}\r")
        child.expect("Saved 4 messages")
        child.prompt()
        child.send("\x03")
        child.expect("Ctrl-D or /exit leaves")
        child.prompt()
        child.send("\x04")
        assert child.process.wait(60) == 0
        messages = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["messages"]
        assert messages[3]["finish_reason"] == "cancelled"
        assert 0 < len(messages[3]["content"]) < 360

    def test_pasted_lines_are_one_message(self, start: Callable[..., Child], tmp_path: Path) -> None:
        child = start()
        child.prompt()
        child.send("\x1b[200~one\r\ntwo\rthree\x1b[201~")
        child.expect("three")
        child.send("\r")
        child.expect("tokens/s")
        child.prompt()
        child.send(f"/save {tmp_path / 'talk.json'}\r")
        child.expect("Saved 2 messages")
        messages = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["messages"]
        assert messages[0]["content"] == "one\ntwo\nthree"

    def test_no_color(self, start: Callable[..., Child]) -> None:
        assert "\x1b[2m" in start().expect("echo on CPU")
        assert "\x1b[2m" not in start(NO_COLOR="1").expect("echo on CPU")
