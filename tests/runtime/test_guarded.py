"""What minds an engine: conversations that fit, answers that a sound device gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from edge.errors import ContextError, DeviceError
from edge.messages import Chunk, Message, Sampling, Usage
from edge.runtime.canary import Finding
from edge.runtime.guarded import Guarded
from edge.runtime.settings import Settings
from edge.runtime.watch import RUN

ASK = [Message("user", "Why?")]
USAGE = Usage(4, 2, 0.1, 0.1, "stop")
GARBAGE = [Chunk("G", token_ids=(7,)) for _ in range(RUN + 10)]
ANSWER = [Chunk("Be", token_ids=(1,)), Chunk("cause.", token_ids=(2,)), Chunk("", usage=USAGE)]


class Told:
    """An engine that says what it was told to say. A token is a character."""

    name = "told"

    def __init__(
        self, device: str, chunks: Sequence[Chunk], context: int = 1000, max_prompt: int | None = None
    ) -> None:
        self.settings = Settings(device)
        self.device, self.chunks, self.context_length, self.max_prompt = device, chunks, context, max_prompt
        self.read: list[Message] = []
        self.closed = False

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Chunk]:
        assert not self.closed
        self.read = list(messages)
        yield from self.chunks

    def encode(self, messages: Sequence[Message]) -> list[int]:
        return [ord(letter) for message in messages for letter in message.content]

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self.encode(messages))

    def warm_up(self) -> None:
        """Nothing to warm."""

    def cancel(self) -> None:
        """Nothing to end."""

    def close(self) -> None:
        self.closed = True


def guarded(engine: Any, then: Any = None, finding: Finding | None = None, **more: Any) -> tuple[Guarded, list[Any]]:
    blamed: list[Any] = []

    def judge(settings: Settings) -> Finding | None:
        assert engine.closed, "a second copy has no room"
        return finding

    made = Guarded(engine, lambda: then, judge, lambda settings, found: blamed.append(settings.device), **more)
    return made, blamed


def said(chunks: Sequence[Chunk]) -> str:
    text = ""
    for chunk in chunks:
        text = chunk.text if chunk.restart else text + chunk.text
    return text


def notices(chunks: Sequence[Chunk]) -> list[str]:
    return [chunk.notice for chunk in chunks if chunk.notice]


def test_a_sound_answer_passes_as_it_is() -> None:
    made, blamed = guarded(Told("CPU", ANSWER))
    chunks = list(made.stream(ASK, Sampling()))
    assert chunks == ANSWER and not blamed and not notices(chunks)


def test_a_device_at_fault_is_left_and_the_question_answered_again() -> None:
    second = Told("CPU", ANSWER)
    made, blamed = guarded(Told("GPU", GARBAGE), second, Finding(False, "the logits are not numbers", {}))
    chunks = list(made.stream(ASK, Sampling()))
    assert said(chunks) == "Because." and chunks[-1].usage == USAGE
    (notice,) = notices(chunks)
    assert "GPU computes wrongly (the logits are not numbers)" in notice and "on CPU" in notice
    assert blamed == ["GPU"] and made.device == "CPU" and second.read == ASK


def test_a_model_at_fault_is_told_and_not_checked_again() -> None:
    again = Told("GPU", GARBAGE)
    made, blamed = guarded(Told("GPU", GARBAGE), again, Finding(True, None, {}))
    chunks = list(made.stream(ASK, Sampling()))
    assert len(said(chunks)) < len(GARBAGE)
    assert "computes right" in notices(chunks)[0] and not blamed
    assert said(list(made.stream(ASK, Sampling()))) == "G" * len(GARBAGE)
    assert not again.closed


def test_a_model_without_golden_logits_is_only_stopped() -> None:
    made, _ = guarded(Told("GPU", GARBAGE), Told("GPU", ANSWER), None)
    assert "no golden logits" in notices(list(made.stream(ASK, Sampling())))[0]


def test_garbage_from_the_next_device_too_ends_the_answer() -> None:
    made, _ = guarded(Told("GPU", GARBAGE), Told("CPU", GARBAGE), Finding(False, "KL", {}))
    assert "again" in notices(list(made.stream(ASK, Sampling())))[-1]


LONG = [
    Message("system", "S" * 10),
    *(Message("user" if i % 2 == 0 else "assistant", str(i % 10) * 60) for i in range(9)),
]


@pytest.mark.parametrize(("context", "max_prompt"), [(400, None), (500, 300)])
def test_a_conversation_that_outgrows_the_context_loses_its_oldest_turns(context: int, max_prompt: int | None) -> None:
    engine = Told("NPU" if max_prompt else "CPU", ANSWER, context, max_prompt)
    made, _ = guarded(engine)
    chunks = list(made.stream(LONG, Sampling(max_new_tokens=50)))
    assert said(chunks) == "Because."
    assert engine.read[0] == LONG[0] and engine.read[-1] == LONG[-1] and len(engine.read) < len(LONG)
    assert engine.count_tokens(engine.read) <= (max_prompt or context - 50)
    assert f"{max_prompt or context:,}" in notices(chunks)[0]
    assert not notices(list(made.stream(LONG, Sampling(max_new_tokens=50)))), "it is said once"


def test_what_cannot_be_trimmed_is_refused() -> None:
    made, _ = guarded(Told("CPU", ANSWER, 100))
    with pytest.raises(ContextError, match="120 tokens"):
        list(made.stream([Message("user", "x" * 120)], Sampling(max_new_tokens=5)))
    strict, _ = guarded(Told("CPU", ANSWER, 400), policy="refuse")
    with pytest.raises(ContextError):
        list(strict.stream(LONG, Sampling(max_new_tokens=50)))


@pytest.mark.parametrize("ok", [True, False])
def test_a_check_that_was_left_for_later_is_made_once(ok: bool) -> None:
    checked: list[Any] = []

    def check(engine: Any) -> Finding:
        checked.append(engine)
        return Finding(ok, None if ok else "it is far off", {})

    engine = Told("CPU", ANSWER)
    made, blamed = guarded(engine, late_check=check)
    if ok:
        made.warm_up()
        made.warm_up()
        assert not engine.closed and not blamed
    else:
        with pytest.raises(DeviceError, match="CPU computes wrongly: it is far off"):
            made.warm_up()
        assert engine.closed and blamed == ["CPU"]
    assert checked == [engine]


def test_the_terminal_tells_a_notice_beside_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    from edge.ui import terminal

    made, _ = guarded(Told("GPU", GARBAGE), Told("CPU", ANSWER), Finding(False, "KL", {}))
    asked = iter(["Why?", "/stats"])
    read: Callable[[], str] = lambda: next(asked, None) or (_ for _ in ()).throw(EOFError)  # noqa: E731
    terminal.run_chat(made, sampling=Sampling(), read_line=read)
    out, err = capsys.readouterr()
    assert out.endswith("Because.\n") and "computes wrongly" in err
    assert "4 tokens; how many of them were kept from before is not known here" in err
