"""What minds an engine: conversations that fit, answers that a sound device gives, whatever happens meanwhile."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge import golden as goldens
from edge.errors import ContextError, DeviceError, ModelError, ResourceError
from edge.files import HOME_VARIABLE
from edge.lora.asked import Loras
from edge.messages import Chunk, Conversation, Message, Sampling, Usage
from edge.runtime import canary
from edge.runtime.canary import Finding
from edge.runtime.choices import Choices
from edge.runtime.guarded import IN_PEACE, Guarded
from edge.runtime.guarding import open_guarded
from edge.runtime.minding import Judgement
from edge.runtime.prefix import Reading
from edge.runtime.settings import Settings
from edge.runtime.stream import Running, stream_tokens
from edge.runtime.watch import RUN

ASK = [Message("user", "Why?")]
USAGE = Usage(4, 2, 0.1, 0.1, "stop")
ANSWER = [Chunk("Be", token_ids=(1,)), Chunk("cause.", token_ids=(2,)), Chunk("", usage=USAGE)]
GOOD = [66, 101, 33]  # "Be!"
BAD = [71] * (RUN + 500)
WRONG = Finding(False, "the logits are not numbers", {})
SOUND = Finding(True, None, {})


class Told:
    """An engine that says what it was told to say. A token is a character."""

    name = "told"
    tuned = ""

    def __init__(
        self, device: str, chunks: Sequence[Chunk], context: int = 1000, max_prompt: int | None = None
    ) -> None:
        self.settings = Settings(device)
        self.device, self.chunks, self.context_length, self.max_prompt = device, chunks, context, max_prompt
        self.read: Conversation = []
        self.closed = False

    def stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None = None
    ) -> Iterator[Chunk]:
        assert not self.closed
        self.read = conversation if isinstance(conversation, str) else list(conversation)
        yield from self.chunks

    def encode(self, conversation: Conversation) -> list[int]:
        if self.closed:
            raise ModelError("the model has been closed", hint="Load it again.")
        if isinstance(conversation, str):
            return list(map(ord, conversation))
        return [ord(letter) for message in conversation for letter in message.content]

    def count_tokens(self, conversation: Conversation) -> int:
        return len(self.encode(conversation))

    def warm_up(self) -> None:
        """Nothing to warm."""

    def cancel(self) -> None:
        """Nothing to end."""

    def close(self) -> None:
        self.closed = True


class Working(Told):
    """The real streaming, 8 answers at once; says what `tokens` gives for a question, 10 tokens a millisecond."""

    def __init__(
        self, device: str, tokens: Callable[[str], Sequence[int]], *, lost: threading.Event | None = None,
        together: int = 8,
    ) -> None:  # fmt: skip
        super().__init__(device, [], context=100_000)
        self.tokens, self.lost, self.together = tokens, lost, together
        self.running, self.turn = Running(), threading.Semaphore(together)
        self.begun = 0

    def stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None = None
    ) -> Iterator[Chunk]:
        prompt = self.encode(conversation)
        assert not isinstance(conversation, str)
        question = conversation[-1].content
        self.begun += 1

        def produce(write: Any) -> None:
            for token in self.tokens(question):
                time.sleep(0.0001)
                if self.lost is not None and self.lost.is_set():
                    raise DeviceError(f"{self.device} failed while answering: device lost", hint="Plug it in.")
                if not write([token]):
                    return

        with self.running.begin(cancelled) as ended:
            yield from stream_tokens(
                produce, decode=lambda ids: "".join(map(chr, ids)), reading=Reading(len(prompt)),
                stop_ids=frozenset({33}), stop=(), lock=self.turn, cancelled=ended, started=time.perf_counter(),
            )  # fmt: skip

    def probe(self) -> None:
        """Waits for a place, as the real one does."""
        with self.turn:
            if self.closed:
                raise ModelError("the model has been closed", hint="Load it again.")

    def cancel(self) -> None:
        self.running.cancel()

    def close(self) -> None:
        self.cancel()
        for _ in range(self.together):
            self.turn.acquire()
        self.closed = True
        for _ in range(self.together):
            self.turn.release()


class Laptop:
    """Opens CPU after what it begins with, judges what computes in `findings`, and remembers it all."""

    def __init__(self, first: Any, *then: Any, findings: dict[str, Finding | None] | None = None, **more: Any) -> None:
        self.then = list(then)
        self.findings = findings if findings is not None else {"GPU": WRONG, "CPU": SOUND, "NPU": WRONG}
        self.judged: list[str] = []
        self.blamed: list[tuple[str, bool]] = []
        self.opened: list[Any] = [first]
        self.judging, self.opening = threading.Event(), threading.Event()
        self.judging.set()
        self.opening.set()
        self.guarded = Guarded(first, self._reopen, self._judge, self._blame, **more)

    def _reopen(self) -> Any:
        assert all(engine.closed for engine in self.opened), "a second copy has no room"
        assert self.opening.wait(20)
        engine = self.then.pop(0) if len(self.then) > 1 else self.then[0]
        if isinstance(engine, Exception):
            raise engine
        self.opened.append(engine)
        return engine

    def _judge(self, engine: Any) -> Finding | None:
        assert not engine.closed, "it is judged while others are answered"
        self.judged.append(engine.device)
        if isinstance(engine, Working):
            engine.probe()
        assert self.judging.wait(20)
        return self.findings[engine.device]

    def _blame(self, settings: Settings, finding: Finding, wrong: bool) -> None:
        assert not finding.ok
        self.blamed.append((settings.device, wrong))


class Talk:
    """One answer, taken in a thread of its own."""

    def __init__(self, guarded: Guarded, question: str) -> None:
        self.text, self.chunks, self.error, self.restarts = "", list[Chunk](), None, 0
        self._guarded, self._question = guarded, question
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for chunk in self._guarded.stream([Message("user", self._question)], Sampling()):
                self.restarts += chunk.restart
                self.text = chunk.text if chunk.restart else self.text + chunk.text
                self.chunks.append(chunk)
        except Exception as error:
            self.error = error

    def end(self) -> Talk:
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self.error is None:
            assert self.chunks[-1].usage is not None, "the last chunk carries the usage"
        return self

    @property
    def usage(self) -> Usage:
        usage = self.chunks[-1].usage
        assert usage is not None
        return usage

    @property
    def notices(self) -> list[str]:
        return notices(self.chunks)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def notices(chunks: Sequence[Chunk]) -> list[str]:
    return [chunk.notice for chunk in chunks if chunk.notice]


def honest(length: int) -> list[int]:
    return [97 + number % 20 for number in range(length)]


def faulty(question: str) -> list[int]:
    return BAD * 4 if question.startswith("bad") else honest(1500)


def good(question: str) -> list[int]:
    return GOOD


def test_a_sound_answer_passes_as_it_is() -> None:
    laptop = Laptop(Told("CPU", ANSWER))
    assert list(laptop.guarded.stream(ASK, Sampling())) == ANSWER
    assert not laptop.judged and not laptop.blamed


def test_a_raw_text_passes_as_it_is() -> None:
    engine = Told("CPU", ANSWER, context=10)
    assert list(Laptop(engine).guarded.stream("x" * 50, Sampling())) == ANSWER
    assert engine.read == "x" * 50


def test_a_device_at_fault_is_left_and_the_question_answered_again() -> None:
    laptop = Laptop(Working("GPU", faulty), Working("CPU", good))
    talk = Talk(laptop.guarded, "bad").end()
    assert talk.text == "Be" and talk.restarts == 1 and talk.usage.finish_reason == "stop"
    (notice,) = talk.notices
    assert "GPU computes wrongly (the logits are not numbers)" in notice and "on CPU" in notice
    assert laptop.judged == ["GPU"] and laptop.blamed == [("GPU", True)] and laptop.guarded.device == "CPU"


def test_an_honest_answer_that_repeats_itself_goes_on() -> None:
    """Neither cut nor interrupted, and others like it are left in peace for a while; but not for good."""
    laptop = Laptop(Working("CPU", lambda question: BAD))
    talk = Talk(laptop.guarded, "zeros, please").end()
    assert talk.text == "G" * len(BAD) and talk.notices == [] and talk.restarts == 0
    assert talk.usage.finish_reason == "length" and laptop.opened[0].begun == 1
    for _ in range(IN_PEACE):
        assert Talk(laptop.guarded, "more").end().text == "G" * len(BAD)
    assert laptop.judged == ["CPU"]
    Talk(laptop.guarded, "more").end()
    assert laptop.judged == ["CPU", "CPU"] and not laptop.blamed


@pytest.mark.parametrize("device", ["NPU", "CPU"])
def test_where_one_is_answered_at_a_time_the_answer_ends_for_the_judge(device: str) -> None:
    """The NPU, and the CPU's plain pipeline: the judge would wait for the very answer it is called for."""
    laptop = Laptop(Working(device, lambda question: BAD * 50, together=1), findings={device: SOUND})
    stream = laptop.guarded.stream(ASK, Sampling())
    chunks = []
    for chunk in stream:
        chunks.append(chunk)
        if sum(item.restart for item in chunks) and len(chunks) > 3 * RUN:
            laptop.guarded.cancel()
    restart = next(number for number, chunk in enumerate(chunks) if chunk.restart)
    assert restart < 2 * RUN and "computes right" in str(chunks[restart].notice)
    assert len(chunks) - restart > RUN + 200, "and it is not watched again"
    assert laptop.judged == [device] and not laptop.blamed and not laptop.opened[0].closed


def test_eight_suspicious_answers_fill_the_pipeline_and_are_judged_all_the_same() -> None:
    laptop = Laptop(Working("GPU", lambda question: BAD * 100), Working("CPU", good))
    talks = [Talk(laptop.guarded, f"bad {number}") for number in range(8)]
    assert [talk.end().text for talk in talks] == ["Be"] * 8
    assert laptop.judged == ["GPU"] and laptop.blamed == [("GPU", True)]


def test_one_faulty_answer_among_many() -> None:
    """The honest ones go on meanwhile, and begin again where they have to; who comes meanwhile waits."""
    laptop = Laptop(Working("GPU", faulty), Working("CPU", lambda question: honest(40)))
    laptop.judging.clear()
    laptop.opening.clear()
    talks = [Talk(laptop.guarded, question) for question in ("bad", "good 1", "good 2")]
    wait_for(lambda: laptop.judged)
    seen = [len(talk.text) for talk in talks]
    wait_for(lambda: all(len(talk.text) > before for talk, before in zip(talks, seen, strict=True)))
    assert not laptop.opened[0].closed
    laptop.judging.set()
    wait_for(lambda: laptop.blamed)
    late = Talk(laptop.guarded, "late")
    time.sleep(0.1)
    assert not late.text and late.error is None
    laptop.opening.set()
    for talk in (*talks, late):
        assert talk.end().text == "".join(map(chr, honest(40))), (talk.error, talk.chunks)
        assert talk.usage.finish_reason == "length" and talk.restarts == (talk is not late)
    assert all("From the beginning, on CPU" in talk.notices[-1] for talk in talks)
    assert laptop.judged == ["GPU"] and len(laptop.opened) == 2 and laptop.blamed == [("GPU", True)]


def test_a_cancel_before_the_first_piece_is_not_lost() -> None:
    laptop = Laptop(Working("CPU", good))
    stream = laptop.guarded.stream([Message("user", "good")], Sampling())
    laptop.guarded.cancel()
    (last,) = stream
    assert last.usage is not None and (last.usage.finish_reason, last.usage.completion_tokens) == ("cancelled", 0)


def test_what_the_user_cancels_is_not_begun_again() -> None:
    laptop = Laptop(Working("GPU", faulty), Working("CPU", good))
    laptop.judging.clear()
    talks = [Talk(laptop.guarded, question) for question in ("bad", "good")]
    wait_for(lambda: laptop.judged)
    laptop.guarded.cancel()
    for talk in talks:
        assert talk.end().usage.finish_reason == "cancelled" and not talk.restarts
    laptop.judging.set()


@pytest.mark.parametrize("together", [1, 8])
def test_cancelled_while_it_is_judged(together: int) -> None:
    laptop = Laptop(Working("GPU", lambda question: BAD, together=together), Working("CPU", good))
    laptop.judging.clear()
    talk = Talk(laptop.guarded, "bad")
    wait_for(lambda: laptop.judged)
    laptop.guarded.cancel()
    assert talk.end().usage.finish_reason == "cancelled" and talk.usage.completion_tokens > 0
    laptop.judging.set()
    assert not laptop.blamed


def test_cancelled_while_another_device_is_opened() -> None:
    laptop = Laptop(Working("GPU", faulty), Working("CPU", good))
    laptop.opening.clear()
    talk = Talk(laptop.guarded, "bad")
    wait_for(lambda: laptop.blamed)
    laptop.guarded.cancel()
    assert talk.end().usage.finish_reason == "cancelled" and not talk.restarts
    laptop.opening.set()
    assert Talk(laptop.guarded, "again").end().text == "Be"


def test_closed_while_another_device_is_opened_leaves_nothing_open() -> None:
    laptop = Laptop(Working("GPU", faulty), Working("CPU", good))
    laptop.opening.clear()
    talk = Talk(laptop.guarded, "bad")
    wait_for(lambda: laptop.blamed)
    closing = threading.Thread(target=laptop.guarded.close)
    closing.start()
    assert talk.end().usage.finish_reason == "cancelled"
    laptop.opening.set()
    closing.join(20)
    assert not closing.is_alive() and [engine.closed for engine in laptop.opened] == [True, True]
    with pytest.raises(ModelError, match="has been closed"):
        list(laptop.guarded.stream(ASK, Sampling()))


def test_closed_while_it_is_judged() -> None:
    laptop = Laptop(Working("GPU", faulty), Working("CPU", good))
    laptop.judging.clear()
    talk = Talk(laptop.guarded, "bad")
    wait_for(lambda: laptop.judged)
    laptop.guarded.close()
    laptop.judging.set()
    assert talk.end().usage.finish_reason == "cancelled"
    assert [engine.closed for engine in laptop.opened] == [True] and not laptop.blamed


def test_an_opening_that_failed_is_tried_again_at_the_next_question() -> None:
    fault = ResourceError("there is no memory for it", hint="Close other programs.")
    laptop = Laptop(Working("GPU", faulty), fault, Working("CPU", good))
    talk = Talk(laptop.guarded, "bad").end()
    assert talk.error is fault
    again = Talk(laptop.guarded, "again").end()
    assert again.text == "Be" and "GPU computes wrongly" in again.notices[0] and "on CPU" in again.notices[0]
    assert Talk(laptop.guarded, "once more").end().notices == []
    assert laptop.blamed == [("GPU", True)]


def test_garbage_from_the_next_device_too_ends_the_answer_and_moves_on() -> None:
    laptop = Laptop(
        Working("NPU", faulty), Working("GPU", faulty), Working("CPU", good),
        findings={"NPU": WRONG, "GPU": WRONG, "CPU": SOUND},
    )  # fmt: skip
    talk = Talk(laptop.guarded, "bad").end()
    assert talk.restarts == 1 and "GPU computes wrongly, too" in talk.notices[-1]
    assert talk.usage.finish_reason == "cancelled"
    assert Talk(laptop.guarded, "bad").end().text == "Be"
    assert laptop.blamed == [("NPU", True), ("GPU", True)]


def test_a_model_without_golden_logits_is_only_stopped() -> None:
    laptop = Laptop(Working("GPU", faulty), findings={"GPU": None})
    talk = Talk(laptop.guarded, "bad").end()
    assert "no golden logits" in talk.notices[0] and talk.usage.completion_tokens < len(BAD) * 4
    assert not laptop.opened[0].closed and not laptop.blamed


def test_a_probe_that_fails_is_the_devices_fault() -> None:
    class Breaking(Working):
        def probe(self) -> None:
            raise DeviceError("GPU failed while answering: out of resources", hint="Update the driver.")

    laptop = Laptop(Breaking("GPU", faulty), Working("CPU", good))
    talk = Talk(laptop.guarded, "bad").end()
    assert talk.text == "Be" and "out of resources" in talk.notices[0] and laptop.blamed == [("GPU", True)]


def test_a_device_that_is_lost_is_replaced_under_all_answers() -> None:
    lost = threading.Event()
    laptop = Laptop(Working("GPU", lambda question: honest(4000), lost=lost), Working("CPU", good))
    talks = [Talk(laptop.guarded, str(number)) for number in range(3)]
    wait_for(lambda: all(talk.text for talk in talks))
    lost.set()
    for talk in talks:
        assert talk.end().text == "Be" and talk.restarts == 1
        assert "GPU failed while answering: device lost. From the beginning, on CPU" in talk.notices[0]
    assert laptop.blamed == [("GPU", False)] and not laptop.judged, "it may be plugged in again"


def test_without_fallback_a_lost_device_is_the_users_to_hear_of() -> None:
    lost = threading.Event()
    lost.set()
    laptop = Laptop(Working("GPU", faulty, lost=lost), Working("CPU", good), fallback=False)
    assert "device lost" in str(Talk(laptop.guarded, "Why?").end().error) and not laptop.blamed


def test_a_device_is_lost_once_in_an_answer() -> None:
    lost = threading.Event()
    lost.set()
    laptop = Laptop(Working("GPU", faulty, lost=lost), Working("CPU", faulty, lost=lost))
    assert "CPU failed while answering: device lost" in str(Talk(laptop.guarded, "Why?").end().error)
    assert laptop.blamed == [("GPU", False)]


LONG = [
    Message("system", "S" * 10),
    *(Message("user" if i % 2 == 0 else "assistant", str(i % 10) * 60) for i in range(9)),
]


@pytest.mark.parametrize(("context", "max_prompt"), [(400, None), (500, 300)])
def test_a_conversation_that_outgrows_the_context_loses_its_oldest_turns(context: int, max_prompt: int | None) -> None:
    engine = Told("NPU" if max_prompt else "CPU", ANSWER, context, max_prompt)
    guarded = Laptop(engine).guarded
    chunks = list(guarded.stream(LONG, Sampling(max_new_tokens=50)))
    assert "".join(chunk.text for chunk in chunks) == "Because." and isinstance(engine.read, list)
    assert engine.read[0] == LONG[0] and engine.read[-1] == LONG[-1] and len(engine.read) < len(LONG)
    assert engine.count_tokens(engine.read) <= (max_prompt or context - 50)


def test_of_each_conversation_it_is_told_when_it_loses_a_turn() -> None:
    """Two visitors of one page, each question with its whole history."""
    guarded = Laptop(Told("CPU", ANSWER, context=100)).guarded

    def said(exchanges: int) -> list[str]:
        turns = [Message("user", "x" * 20), Message("assistant", "y" * 5)] * exchanges
        return notices(list(guarded.stream([*turns, Message("user", "z" * 10)], Sampling())))

    told = [[said(exchanges) for _ in ("one", "the other")] for exchanges in range(9)]
    assert all(one == other for one, other in told)
    losses = [exchanges for exchanges, (one, _) in enumerate(told) if one]
    assert losses and 0 not in losses and len(losses) < 6, "dropped in few steps, and told at each"
    assert all("context of 100 tokens" in told[exchanges][0][0] for exchanges in losses)


def test_what_cannot_be_trimmed_is_refused() -> None:
    guarded = Laptop(Told("CPU", ANSWER, 100)).guarded
    with pytest.raises(ContextError, match="120 tokens"):
        list(guarded.stream([Message("user", "x" * 120)], Sampling(max_new_tokens=5)))
    strict = Laptop(Told("CPU", ANSWER, 400), policy="refuse").guarded
    with pytest.raises(ContextError):
        list(strict.stream(LONG, Sampling(max_new_tokens=50)))


@pytest.mark.parametrize("how", ["warm up", "ask"])
def test_a_check_that_was_left_for_later_is_made_once(how: str) -> None:
    """By warming up, or beside the first answer where nobody does."""
    checked: list[Any] = []

    def check(engine: Any) -> Finding:
        checked.append(engine)
        return SOUND

    laptop = Laptop(Working("CPU", good), late_check=check)
    if how == "warm up":
        laptop.guarded.warm_up()
        laptop.guarded.warm_up()
        assert checked == [laptop.opened[0]]
    assert Talk(laptop.guarded, "Why?").end().notices == []
    assert Talk(laptop.guarded, "Why?").end().text == "Be"
    laptop.guarded.warm_up()
    assert checked == [laptop.opened[0]] and not laptop.blamed and not laptop.judged


def test_a_late_check_that_fails_replaces_the_engine_before_the_first_question() -> None:
    laptop = Laptop(Working("CPU", faulty), Working("CPU", good), late_check=lambda engine: WRONG)
    laptop.guarded.warm_up()
    talk = Talk(laptop.guarded, "bad").end()
    assert talk.text == "Be" and not talk.restarts
    assert talk.notices == ["CPU computes wrongly (the logits are not numbers). It goes on on CPU."]
    assert laptop.blamed == [("CPU", True)] and laptop.opened[0].closed


@pytest.mark.parametrize("tokens", [good, faulty], ids=["short", "long"])
def test_a_late_check_that_fails_beside_the_first_answer(tokens: Callable[[str], list[int]]) -> None:
    def check(engine: Any) -> Finding:
        engine.probe()
        time.sleep(0.1)
        return WRONG

    laptop = Laptop(Working("CPU", tokens), Working("CPU", lambda question: honest(9)), late_check=check)
    talk = Talk(laptop.guarded, "Why?").end()
    assert talk.text == "abcdefghi" and talk.restarts == 1 and "computes wrongly" in talk.notices[0]
    assert laptop.blamed == [("CPU", True)]


def test_the_terminal_tells_a_notice_beside_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    from edge.ui import terminal

    laptop = Laptop(Working("GPU", faulty), Told("CPU", ANSWER))
    asked = iter(["bad", "/stats"])
    read: Callable[[], str] = lambda: next(asked, None) or (_ for _ in ()).throw(EOFError)  # noqa: E731
    terminal.run_chat(laptop.guarded, sampling=Sampling(), read_line=read)
    out, err = capsys.readouterr()
    assert out.endswith("Because.\n") and "computes wrongly" in err
    assert "4 tokens; how many of them were kept from before is not known here" in err


class TestOpened:
    """A tiny model, opened as the commands open it."""

    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))

    @pytest.fixture
    def looks(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """How many prompts each quick check was to read."""
        looks: list[int] = []
        real = canary.quick

        def counted(engine: Any, golden: Any, lengths: Sequence[int] = canary.QUICK) -> Finding:
            looks.append(len(lengths))
            return real(engine, golden, lengths)

        monkeypatch.setattr(canary, "quick", counted)
        return looks

    def answer(self, folder: Path) -> tuple[Guarded, list[Chunk]]:
        with open_guarded(folder, Settings("CPU", context=200)) as engine:
            return engine, list(engine.stream(ASK, Sampling(temperature=0, max_new_tokens=4)))

    def test_the_numbers_are_looked_at_whoever_asks(self, tiny_npu: Path, looks: list[int]) -> None:
        """Also where nobody warms up: a piped question, the first visitor of the page."""
        for _ in range(3):
            _, chunks = self.answer(tiny_npu)
            assert chunks[-1].usage is not None and not notices(chunks)
        assert looks == [len(canary.QUICK)] * 3

    def test_what_is_looked_at_later_is_not_told_before(self, tiny_npu: Path) -> None:
        told: list[list[str]] = []
        for _ in range(2):
            told.append([])
            with open_guarded(tiny_npu, Settings("CPU", context=200), progress=lambda *each: told[-1].append(each[0])):
                pass
        assert told == [["loading out on CPU", "checking the numbers of CPU"], ["loading out on CPU"]]

    def test_what_is_wrong_by_now_is_left(
        self, tiny_npu: Path, looks: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.answer(tiny_npu)
        sound = canary.quick

        def wrong_once(*asked: Any) -> Finding:
            monkeypatch.setattr(canary, "quick", sound)
            return WRONG

        monkeypatch.setattr(canary, "quick", wrong_once)
        engine, chunks = self.answer(tiny_npu)
        assert "CPU computes wrongly (the logits are not numbers). From the beginning" in notices(chunks)[0]
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0
        assert looks[1:] == [12], "what takes its place is looked at whole, and at once"
        assert engine.device == "CPU", "there is no other, and what was found may have passed"

    @pytest.mark.parametrize("damage", ["nan", "flipped"])
    def test_damaged_golden_logits_are_the_files_fault(self, damage: str, tiny_npu: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(tiny_npu, tmp_path / "model"))
        data = bytearray((folder / goldens.FILE_NAME).read_bytes())
        data[-4:] = b"\x00\x00\xc0\x7f" if damage == "nan" else bytes([data[-4] ^ 1, *data[-3:]])
        (folder / goldens.FILE_NAME).write_bytes(data)
        with pytest.raises(ModelError, match=r"golden\.safetensors is damaged"):
            open_guarded(folder, Settings("CPU"))
        assert Choices().about(folder, "CPU") == []

    def test_what_fails_with_adapters_is_not_held_against_the_model(self, tiny_npu: Path) -> None:
        def load(folder: Path, settings: Settings) -> Any:
            raise DeviceError("no graph with adapters here", hint="")

        before = Choices().about(tiny_npu, "CPU")
        with pytest.raises(DeviceError, match="no graph with adapters"):
            open_guarded(tiny_npu, Settings("CPU"), loras=Loras(), load=load)
        assert Choices().about(tiny_npu, "CPU") == before

    def test_a_context_with_room_for_few_golden_prompts(self, tiny_npu: Path) -> None:
        with open_guarded(tiny_npu, Settings("CPU", context=20)) as engine:
            assert engine.context_length == 20
        with pytest.raises(ContextError, match="no room for the 1 token of a golden prompt"):
            open_guarded(tiny_npu, Settings("CPU", context=1))


def test_where_no_thread_is_to_be_had_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    judgement = Judgement(Told("CPU", []), lambda engine: SOUND, lambda finding: None)  # type: ignore[arg-type]
    monkeypatch.setattr(threading.Thread, "start", refused)
    judgement.start()
    assert judgement.wait(threading.Event()) and isinstance(judgement.error, RuntimeError)
    assert not judgement.sound and judgement.wrong is None


def test_a_device_that_was_lost_while_nobody_asked_is_left_by_who_counts() -> None:
    class Lost(Told):
        def encode(self, conversation: Conversation) -> list[int]:
            raise DeviceError("the process that runs the model on GPU was killed", hint="Close other programs.")

    laptop = Laptop(Lost("GPU", []), Told("CPU", ANSWER))
    assert laptop.guarded.count_tokens(ASK) == 4
    assert laptop.blamed == [("GPU", False)] and laptop.guarded.device == "CPU"
    first = next(iter(laptop.guarded.stream(ASK, Sampling())))
    assert first.notice is not None and "was killed" in first.notice and not first.restart


def test_without_another_way_who_counts_is_told_of_the_lost_device() -> None:
    class Lost(Told):
        def encode(self, conversation: Conversation) -> list[int]:
            raise DeviceError(f"{self.device} is lost", hint="Plug it in.")

    with pytest.raises(DeviceError, match="GPU is lost"):
        Laptop(Lost("GPU", []), Told("CPU", ANSWER), fallback=False).guarded.count_tokens(ASK)
    with pytest.raises(DeviceError, match="CPU is lost"):
        Laptop(Lost("GPU", []), Lost("CPU", [])).guarded.count_tokens(ASK)
