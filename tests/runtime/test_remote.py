"""An engine in a process of its own: real processes, most of them with an engine that needs no model."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge.errors import ContextError, DeviceError, EdgeError, ModelError, UsageError
from edge.files import HOME_VARIABLE
from edge.grammar import Literally
from edge.messages import Chunk, Message, Sampling, Tokens
from edge.runtime import remote
from edge.runtime.canary import Finding
from edge.runtime.echo import EchoEngine
from edge.runtime.engine import Engine
from edge.runtime.guarded import Guarded
from edge.runtime.guarding import open_guarded
from edge.runtime.remote import RemoteEngine
from edge.runtime.settings import Settings

CPU = Settings("CPU")
HOST = """
import ctypes, os, sys, threading, time, types
from edge.errors import ContextError
from edge.messages import Tokens
from edge.runtime import hosting
from edge.runtime.echo import EchoEngine

def hold(seconds):  # keeps the GIL, as a step of the pipeline does
    if sys.platform == "win32":
        ctypes.PyDLL("kernel32").Sleep(int(seconds * 1000))
    else:
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))

class Host(EchoEngine):
    manifest = types.SimpleNamespace(architecture=types.SimpleNamespace(vocab_size=300))

    def __init__(self, folder, settings):
        print("a library talks on standard output", flush=True)
        super().__init__(context_length=100_000, seconds_per_token=settings.properties.get("pace", 0.0))
        self.name = f"{folder} as {settings}"
        self.mortal = settings.device != "GPU.1"
        self.together, self.tuned = 8, ""
        self._lock = threading.Semaphore(8)
        self.cache_share = 0.5

    def encode(self, conversation):
        if conversation == "the bug":
            raise KeyError("no such thing")
        if isinstance(conversation, Tokens):
            return list(conversation.ids)
        if isinstance(conversation, str):
            return list(map(ord, conversation))
        return [ord(letter) for message in conversation for letter in message.content]

    def stream(self, conversation, sampling, cancelled=None):
        word, _, rest = "".join(map(chr, conversation.ids)).partition(" ")
        if word == "hold":
            hold(float(rest))
        for number, chunk in enumerate(super().stream(conversation, sampling, cancelled)):
            yield chunk
            if word == "die" and number == 2 and self.mortal:
                os._exit(int(rest))

    def probe(self, token_ids):
        hold(float(token_ids[0]))
"""
PLAIN = HOST + "hosting.main(Host)"


def begin(code: str = PLAIN, settings: Settings = CPU, folder: Path = Path("a model")) -> RemoteEngine:
    return RemoteEngine(folder, settings, [sys.executable, "-c", code])


@pytest.fixture
def engine() -> Iterator[RemoteEngine]:
    with begin() as made:
        yield made


@pytest.fixture
def slow() -> Iterator[RemoteEngine]:
    with begin(settings=Settings("CPU", types.MappingProxyType({"pace": 0.02}))) as made:
        yield made


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def reason(chunks: list[Chunk]) -> str:
    assert chunks[-1].usage is not None and all(chunk.usage is None for chunk in chunks[:-1])
    return chunks[-1].usage.finish_reason


def ask(engine: Any, question: str, **more: Any) -> list[Chunk]:
    return list(engine.stream([Message("user", question)], Sampling(**more)))


def gone(process: psutil.Process | subprocess.Popen[bytes], seconds: float = 20) -> bool:
    """Whether it ends within so many seconds."""
    try:
        found = psutil.Process(process.pid)
        found.wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return bool(found.status() == psutil.STATUS_ZOMBIE)
    return True


@contextlib.contextmanager
def ticking() -> Iterator[list[float]]:
    """Gaps between the ticks of a thread, in seconds: what others of this process have of it."""
    gaps: list[float] = []
    over = threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not over.wait(0.005):
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield gaps
    finally:
        over.set()
        thread.join()


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


class TestAnswers:
    def test_they_are_those_of_the_engine(self, engine: RemoteEngine) -> None:
        here = EchoEngine(context_length=100_000)
        for question in ("Why?", "Größe 模型 🙂", ""):
            assert [(c.text, c.token_ids) for c in ask(engine, question)] == [
                (c.text, c.token_ids) for c in ask(here, question)
            ]
        assert text(list(engine.stream("a text", Sampling(max_new_tokens=3)))) == "a t"
        assert text(list(engine.stream(Tokens((65, 66)), Sampling()))) == "AB"
        assert engine.token_bytes([65, 256, 5000]) == [b"A", "Ā".encode(), b""]
        assert engine.encode("AB") == [65, 66] and engine.count_tokens([Message("user", "abc")]) == 3

    def test_what_is_known_after_loading(self, tmp_path: Path) -> None:
        settings = Settings("GPU.1", types.MappingProxyType({"KV_CACHE_PRECISION": "u8"}), context=2048)
        with begin(settings=settings, folder=tmp_path) as engine:
            plain = Settings("GPU.1", {"KV_CACHE_PRECISION": "u8"}, context=2048)
            assert engine.name == f"{tmp_path} as {plain}" and engine.settings is settings
            assert (engine.device, engine.context_length, engine.max_prompt) == ("CPU", 100_000, None)
            assert (engine.together, engine.opens_thought) == (8, False)
            assert engine.manifest.architecture.vocab_size == 300

    def test_eight_at_once(self, slow: RemoteEngine) -> None:
        questions = [chr(65 + number) * 40 for number in range(8)]
        started = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            assert [text(chunks) for chunks in pool.map(lambda question: ask(slow, question), questions)] == questions
        assert time.monotonic() - started < 8 * 40 * 0.02 / 2, "one after the other takes 6.4 s"

    def test_pieces_come_as_they_are_made(self, slow: RemoteEngine) -> None:
        stream = slow.stream("x" * 50, Sampling())
        started = time.monotonic()
        assert next(stream).text == "x" and time.monotonic() - started < 0.8, "the whole takes 1 s"
        assert len(list(stream)) == 50

    def test_times_count_from_the_request_here(self, engine: RemoteEngine) -> None:
        """Of an answer asked for while the child hears nothing: what it measures itself begins a second later."""
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(engine.probe, [1.2])
            time.sleep(0.1)
            usage = ask(engine, "Why?")[-1].usage
            held.result()
        assert usage is not None and usage.ttft_seconds is not None and usage.ttft_seconds > 0.9
        assert usage.token_seconds[0] == usage.ttft_seconds <= usage.token_seconds[-1]

    def test_faults_are_of_their_own_kind(self, engine: RemoteEngine) -> None:
        with pytest.raises(ContextError, match="has room for 99,999"):
            list(engine.stream("x" * 100_000, Sampling()))
        with pytest.raises(UsageError, match="no model to constrain") as caught:
            ask(engine, "x", grammar=Literally("x"))
        assert caught.value.hint == "Load a model." and caught.value.exit_code == 2
        with pytest.raises(UsageError, match="temperature cannot be -1"):
            ask(engine, "x", temperature=-1)
        with pytest.raises(RuntimeError, match="KeyError: 'no such thing'"):
            engine.encode("the bug")
        assert text(ask(engine, "on")) == "on"

    def test_tokens_are_remembered_and_not_for_long(
        self, engine: RemoteEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = engine.encode("AB")
        first.append(67)
        assert engine.encode("AB") == [65, 66] and not engine._asked
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(engine.probe, [2.0])
            time.sleep(0.1)
            started = time.monotonic()
            assert engine.count_tokens("AB") == 2 and time.monotonic() - started < 1, "the child is not asked"
            monkeypatch.setattr(remote, "_ENCODED_SECONDS", 0.0)
            assert engine.count_tokens("AB") == 2 and time.monotonic() - started > 1, "the child is asked again"
            held.result()
        for number in range(50):
            engine.encode(str(number))
        assert len(engine._encoded) == remote._ENCODED

    def test_the_share_of_the_cache(self, slow: RemoteEngine) -> None:
        assert slow.cache_share == 0.0
        stream = slow.stream("x" * 20, Sampling())
        next(stream)
        assert slow.cache_share == 0.5
        stream.close()
        assert slow.cache_share == 0.0


class TestCancelled:
    def test_before_the_first_piece(self, engine: RemoteEngine) -> None:
        for ended in ("cancel", "event"):
            event = threading.Event()
            stream = engine.stream("Why?", Sampling(), event)
            engine.cancel() if ended == "cancel" else event.set()
            chunks = list(stream)
            assert reason(chunks) == "cancelled" and text(chunks) == ""
        assert text(ask(engine, "on")) == "on"

    @pytest.mark.parametrize("how", ["cancel", "event", "close"])
    def test_in_the_middle_the_child_ends_it_too(self, how: str, slow: RemoteEngine) -> None:
        event = threading.Event()
        stream = slow.stream("x" * 5000, Sampling(), event)
        before = [next(stream)]
        started = time.monotonic()
        if how == "close":
            stream.close()
        else:
            slow.cancel() if how == "cancel" else event.set()
            chunks = before + list(stream)
            usage = chunks[-1].usage
            assert reason(chunks) == "cancelled" and usage is not None and usage.prompt_tokens == 5000
            assert usage.completion_tokens == sum(len(chunk.token_ids) for chunk in chunks) < 500
        assert time.monotonic() - started < 2
        streams = [slow.stream(str(number), Sampling()) for number in range(8)]
        assert [next(stream).text for stream in streams] == [str(number) for number in range(8)], "its place is free"

    @pytest.mark.parametrize("how", ["cancel", "event"])
    def test_nobody_need_wait_for_the_next_piece(self, how: str, slow: RemoteEngine) -> None:
        """A reader that is busy with something else: the child hears of it all the same."""
        event = threading.Event()
        stream = slow.stream("x" * 5000, Sampling(), event)
        next(stream)
        slow.cancel() if how == "cancel" else event.set()
        time.sleep(1.5)
        chunks = list(stream)
        assert reason(chunks) == "cancelled" and len(text(chunks)) < 60

    def test_at_once_whatever_the_child_does(self, engine: RemoteEngine) -> None:
        event = threading.Event()
        threading.Timer(0.5, event.set).start()
        started = time.monotonic()
        with ticking() as gaps:
            chunks = list(engine.stream("hold 4", Sampling(), event))
            taken = time.monotonic() - started
        assert reason(chunks) == "cancelled" and 0.5 <= taken < 2
        assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens == 6
        assert max(gaps) < 0.5

    def test_a_large_question_blocks_nobody(self, engine: RemoteEngine) -> None:
        """More than a pipe holds, to a child that does not read."""
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(engine.probe, [2.0])
            time.sleep(0.2)
            event = threading.Event()
            threading.Timer(0.2, event.set).start()
            started = time.monotonic()
            chunks = list(engine.stream("x" * 90_000, Sampling(max_new_tokens=1), event))
            assert reason(chunks) == "cancelled" and time.monotonic() - started < 1.5 and not held.done()
        assert text(ask(engine, "on")) == "on"

    def test_an_interrupt_in_the_reader(self, slow: RemoteEngine) -> None:
        stream = slow.stream("x" * 5000, Sampling())
        next(stream)
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)
        assert not slow._asked and text(ask(slow, "on")) == "on"

    def test_fifty_leave_nothing(self, slow: RemoteEngine) -> None:
        ask(slow, "on")
        threads, theirs = threading.active_count(), _threads(slow)
        for number in range(50):
            event = threading.Event()
            stream = slow.stream("x" * 500, Sampling(), event)
            if number % 3:
                next(stream)
            event.set()
            if number % 2:
                assert reason(list(stream)) == "cancelled"
            else:
                stream.close()
        assert text(ask(slow, "on")) == "on"
        assert threading.active_count() == threads and not slow._asked and not slow._running._events
        assert wait_until(lambda: _threads(slow) <= theirs)


def _threads(engine: RemoteEngine) -> int:
    return int(psutil.Process(engine._process.pid).num_threads())


class TestEnds:
    def test_closing_leaves_no_process(self) -> None:
        threads = threading.active_count()
        engine = begin()
        child = psutil.Process(engine._process.pid)
        engine.close()
        engine.close()
        assert not child.is_running() and wait_until(lambda: threading.active_count() <= threads)
        for again in (
            lambda: engine.encode("x"),
            lambda: ask(engine, "x"),
            engine.warm_up,
            lambda: engine.probe([1]),
        ):
            with pytest.raises(ModelError, match="has been closed"):
                again()

    def test_closing_ends_answers_and_does_not_wait_for_a_long_step(self) -> None:
        engine = begin(settings=Settings("CPU", {"pace": 0.02}))
        with ThreadPoolExecutor(2) as pool:
            answer = pool.submit(ask, engine, "x" * 5000)
            held = pool.submit(engine.probe, [60])
            time.sleep(0.5)
            started = time.monotonic()
            engine.close()
            assert time.monotonic() - started < 8 and gone(engine._process, 0)
            assert reason(answer.result()) == "cancelled"
            with pytest.raises(ModelError, match="has been closed"):
                held.result()

    @pytest.mark.parametrize(
        ("load", "kind", "words"),
        [
            ("raise ContextError('too long: 9 > 8', hint='Shorten it.')", ContextError, "too long: 9 > 8"),
            ("os._exit(7)", DeviceError, "loading the model on GPU ended without an answer (exit code 7)"),
            ("raise ValueError('no such kernel')", RuntimeError, "ValueError: no such kernel"),
        ],
    )
    def test_a_model_that_does_not_load(self, load: str, kind: type[Exception], words: str) -> None:
        before = {child.pid for child in psutil.Process().children()}
        with pytest.raises(kind) as caught:
            begin(f"{HOST}\ndef load(*asked): {load}\nhosting.main(load)", Settings("GPU"))
        assert words in str(caught.value)
        assert {child.pid for child in psutil.Process().children()} <= before

    def test_one_that_was_prepared_is_used_or_ended(self) -> None:
        before = {child.pid for child in psutil.Process().children()}
        with remote.prepared():
            (begun,) = {child.pid for child in psutil.Process().children()} - before
            with pytest.raises(ModelError, match="there is no folder nothing"):
                RemoteEngine.load(Path("nothing"), CPU)
            assert not psutil.pid_exists(begun) and not remote._prepared
        with remote.prepared():
            assert {child.pid for child in psutil.Process().children()} != before
        assert {child.pid for child in psutil.Process().children()} <= before

    def test_an_interrupt_while_it_loads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = {child.pid for child in psutil.Process().children()}

        def interrupted(self: Any) -> None:
            assert psutil.Process().children()
            raise KeyboardInterrupt

        monkeypatch.setattr(remote._Asked, "next", interrupted)
        with pytest.raises(KeyboardInterrupt):
            begin(f"{HOST}\ndef load(*asked): time.sleep(600)\nhosting.main(load)")
        assert {child.pid for child in psutil.Process().children()} <= before

    def test_a_death_is_told_to_all_who_wait(self, slow: RemoteEngine) -> None:
        with ThreadPoolExecutor(4) as pool:
            others = [pool.submit(ask, slow, "x" * 5000) for _ in range(3)]
            time.sleep(0.3)
            killed = pool.submit(ask, slow, "die 7")
            for each in (*others, killed):
                with pytest.raises(DeviceError, match=r"runs the model on CPU ended without an answer \(exit code 7\)"):
                    each.result(30)
        with pytest.raises(DeviceError, match="exit code 7"):
            slow.count_tokens("x")
        slow.close()
        with pytest.raises(DeviceError, match="exit code 7"):
            ask(slow, "x")

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
    def test_a_kill_is_taken_for_a_want_of_memory(self, slow: RemoteEngine) -> None:
        stream = slow.stream("x" * 500, Sampling())
        next(stream)
        os.kill(slow._process.pid, signal.SIGKILL)
        with pytest.raises(DeviceError, match="was killed, most likely for want of memory"):
            list(stream)

    def test_the_answer_begins_again_on_the_next(self) -> None:
        first, second = begin(settings=Settings("GPU")), begin(settings=Settings("GPU.1"))
        blamed: list[tuple[str, Finding, bool]] = []
        with Guarded(
            first, lambda: second, lambda engine: None,
            lambda settings, finding, wrong: blamed.append((settings.device, finding, wrong)),
        ) as guarded:  # fmt: skip
            chunks = list(guarded.stream("die 7", Sampling(max_new_tokens=3)))
            restart = [chunk.restart for chunk in chunks].index(True)
            assert "GPU ended without an answer (exit code 7). From the beginning, on GPU.1" in str(
                chunks[restart].notice
            )
            assert text(chunks[restart + 1 :]) == "die"
            assert blamed[0][0] == "GPU" and blamed[0][2] is False and gone(first._process, 0)
        assert gone(second._process, 0)


PARENT = """
import sys, time
from pathlib import Path
from edge.messages import Sampling
from edge.runtime.remote import RemoteEngine
from edge.runtime.settings import Settings
engine = RemoteEngine(Path("a model"), Settings("CPU", {{"pace": 0.01}}), [sys.executable, "-c", {code!r}])
stream = engine.stream("x" * 50_000, Sampling())
next(stream)
ready = lambda: print(engine._process.pid, flush=True)
{then}
"""


class TestTheParent:
    """A script without `if __name__ == "__main__"`: nothing of it is run twice."""

    def begin(self, then: str) -> tuple[subprocess.Popen[bytes], psutil.Process]:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT.format(code=PLAIN, then=then)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert parent.stdout is not None
        return parent, psutil.Process(int(parent.stdout.readline()))

    def test_it_is_killed(self) -> None:
        parent, child = self.begin("ready()\nlist(stream)")
        parent.kill()
        parent.communicate(timeout=30)
        assert gone(child)

    def test_it_ends_and_closes_nothing(self) -> None:
        parent, child = self.begin("ready()")
        said = parent.communicate(timeout=30)[1].decode()
        assert parent.returncode == 0 and gone(child, 1) and "Error" not in said

    @pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one group on Windows")
    def test_ctrl_c_is_its_matter(self) -> None:
        """As a terminal sends it: to both."""
        parent, child = self.begin("try:\n    ready()\n    list(stream)\nexcept KeyboardInterrupt:\n"
                                   "    print(len(list(engine.stream('on', Sampling()))), flush=True)")  # fmt: skip
        os.killpg(parent.pid, signal.SIGINT)
        out, said = (pipe.decode() for pipe in parent.communicate(timeout=30))
        assert out.strip() == "3" and "Traceback" not in said and parent.returncode == 0 and gone(child, 1)

    def test_it_loads_nothing_of_openvino(self) -> None:
        script = (
            "import sys, edge.runtime.guarded\nfrom edge.runtime import remote\n"
            "print(sorted({'openvino', 'openvino_genai', 'edge.runtime.engine', 'multiprocessing'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "[]", done.stderr

    def test_a_folder_called_edge_where_one_stands_is_not_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "edge").mkdir()
        (tmp_path / "edge" / "__init__.py").write_text("raise SystemExit(99)", encoding="utf-8")
        (tmp_path / "signal.py").write_text("raise SystemExit(98)", encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelError, match="there is no folder nothing"):
            RemoteEngine.load(Path("nothing"), CPU)


STORY = [Message("user", "Write a long story about a lighthouse.")]
GREEDY = Sampling(temperature=0, max_new_tokens=24)
LONG = " ".join(map(str, range(520)))
"""2,000 tokens."""


@pytest.fixture(scope="module")
def pocket(pocket_dir: Path) -> Iterator[RemoteEngine]:
    with RemoteEngine.load(pocket_dir, CPU) as engine:
        yield engine


@pytest.mark.model
class TestThePocketModel:
    def test_the_same_greedy_tokens(self, pocket_dir: Path, pocket: RemoteEngine) -> None:
        def tokens(engine: Any) -> list[tuple[int, ...]]:
            return [chunk.token_ids for chunk in engine.stream(STORY, GREEDY)]

        with Engine.load(pocket_dir, CPU) as here:
            assert sum(tokens(here), ()) == sum(tokens(pocket), ())
            assert here.encode(STORY) == pocket.encode(STORY) and here.token_bytes([5, 6]) == pocket.token_bytes([5, 6])
            for fact in (
                "name",
                "device",
                "context_length",
                "max_prompt",
                "together",
                "opens_thought",
                "tuned",
                "manifest",
            ):
                assert getattr(here, fact) == getattr(pocket, fact)
            mine, theirs = here.probe([5, 6, 7]), pocket.probe([5, 6, 7])
        assert mine.token == theirs.token and theirs.log_probs == pytest.approx(mine.log_probs, abs=1e-3)

    def test_eight_at_once(self, pocket: RemoteEngine) -> None:
        """Answers whose every token is certain: in company, a sum is rounded otherwise."""
        questions = [f"What is the capital of {place}?" for place in ("France", "Italy", "Spain") * 3][:8]
        alone = [text(ask(pocket, question, temperature=0, max_new_tokens=40)) for question in questions]
        assert len(set(alone)) == 3
        with ThreadPoolExecutor(8) as pool:
            both = pool.map(lambda question: text(ask(pocket, question, temperature=0, max_new_tokens=40)), questions)
            assert list(both) == alone

    def test_reading_a_long_prompt_holds_nobody_up(self, pocket: RemoteEngine) -> None:
        assert pocket.count_tokens(LONG) > 1900
        with ticking() as gaps:
            usage = list(pocket.stream(LONG, Sampling(temperature=0, max_new_tokens=2)))[-1].usage
        assert usage is not None and usage.ttft_seconds is not None and usage.ttft_seconds > max(gaps) < 0.5

    def test_pieces_are_not_a_step_late(self, pocket: RemoteEngine) -> None:
        """The step that follows a token keeps the GIL of its process, and with it what has not been sent by then."""
        started, came = time.perf_counter(), []
        for chunk in pocket.stream(STORY, Sampling(temperature=0, max_new_tokens=60, ignore_eos=True)):
            came += [time.perf_counter() - started] * len(chunk.token_ids)
        assert chunk.usage is not None and chunk.usage.tpot_seconds is not None and len(came) == 60
        late = [here - there for here, there in zip(came, chunk.usage.token_seconds, strict=True)]
        assert statistics.median(late) < chunk.usage.tpot_seconds / 2

    def test_a_cancel_while_a_long_prompt_is_read(self, pocket: RemoteEngine) -> None:
        event = threading.Event()
        asked = "Count. " + LONG
        pocket.encode(asked)
        threading.Timer(0.3, event.set).start()
        started = time.monotonic()
        chunks = list(pocket.stream(asked, GREEDY, event))
        assert reason(chunks) == "cancelled" and time.monotonic() - started < 1.5
        assert text(list(pocket.stream(STORY, GREEDY)))

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
    def test_a_kill_in_the_middle_of_an_answer(
        self, pocket_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There is but one way on a CPU; it is tried once more, since what ended it may have passed."""
        monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
        opened: list[RemoteEngine] = []

        def load(folder: Path, settings: Settings) -> RemoteEngine:
            opened.append(RemoteEngine.load(folder, settings))
            return opened[-1]

        with open_guarded(pocket_dir, CPU, load=load) as guarded:
            stream = guarded.stream(STORY, Sampling(temperature=0, max_new_tokens=60))
            before = [next(stream) for _ in range(3)]
            os.kill(opened[0]._process.pid, signal.SIGKILL)
            after = list(stream)
            restart = [chunk.restart for chunk in after].index(True)
            assert "was killed, most likely for want of memory. From the beginning" in str(after[restart].notice)
            assert text(after[restart + 1 :]).startswith(text(before)) and len(opened) == 2
        assert all(gone(engine._process, 0) for engine in opened)

    def test_a_property_the_plugin_does_not_know(self, pocket_dir: Path) -> None:
        with pytest.raises(EdgeError, match="NO_SUCH_PROPERTY") as caught:
            RemoteEngine.load(pocket_dir, Settings("CPU", {"NO_SUCH_PROPERTY": "1"}))
        assert type(caught.value) is UsageError
