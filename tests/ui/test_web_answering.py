"""Answers that go on whoever looks, and what is on disk meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from edge.errors import DeviceError, OutputError, UsageError
from edge.messages import Chunk, Conversation, Sampling, Usage
from edge.runtime.echo import EchoEngine
from edge.ui.web.answering import Job, messages
from edge.ui.web.desk import Desk
from edge.ui.web.store import Store
from edge.ui.web.talk import Settings, Step, Talk, Turn

MakeDesk = Callable[..., Desk]


class Scripted(EchoEngine):
    """Says one line after the other, whatever it is asked, and remembers that."""

    def __init__(self, *lines: str, reason: Any = "stop", opens_thought: bool = False) -> None:
        super().__init__()
        self.lines = list(lines)
        self.asked: list[Any] = []
        self.reason = reason
        self.opens_thought = opens_thought

    def stream(
        self, conversation: Conversation, sampling: Sampling, cancelled: threading.Event | None = None
    ) -> Generator[Chunk, None, None]:
        self.asked.append((conversation, sampling))
        line = self.lines.pop(0)
        for i in range(0, len(line), 3):
            yield Chunk(line[i : i + 3], token_ids=(1,))
        yield Chunk("", usage=Usage(7, len(line), 0.1, 0.01, self.reason))


def ask(desk: Desk, text: str, talk: Talk | None = None, files: Any = None) -> Job:
    return desk.answers.begin(talk or desk.store.new(desk.settings), text, files)


def kept(desk: Desk, job: Job) -> Talk:
    assert job.over.wait(20)
    return desk.store.get(job.talk.id)


def test_an_answer_comes_in_pieces_and_is_kept_whole(make_desk: MakeDesk) -> None:
    desk = make_desk(lambda: EchoEngine(seconds_per_token=0.01))
    job = ask(desk, "hello there 你好 and more than that")
    seen = [turn.content for turn in job.follow()]
    assert len({text for text in seen if text}) > 2 and all(job.turn.content.startswith(text) for text in seen)
    talk = kept(desk, job)
    assert talk.turns[1].content == "hello there 你好 and more than that" and talk.turns[1].ending == "stop"
    figures = talk.turns[1].figures
    assert figures is not None and figures.ttft_seconds and figures.tokens_per_second and figures.device == "CPU"
    assert list(desk.answers.session) == [figures]


def test_what_has_come_is_on_disk_before_the_end(make_desk: MakeDesk) -> None:
    desk = make_desk(lambda: EchoEngine(seconds_per_token=0.05))
    job = ask(desk, "x" * 200)
    time.sleep(2.5)
    talk = Store(desk.store.folder).get(job.talk.id)  # as a program finds it that was started after a crash
    assert talk.answering and 5 < len(talk.turns[1].content) < 200
    job.stop()
    assert kept(desk, job).turns[1].ending == "cancelled"


def test_a_stopped_answer_ends_at_once_and_stays(make_desk: MakeDesk) -> None:
    desk = make_desk(lambda: EchoEngine(seconds_per_token=0.05))
    job = ask(desk, "x" * 200)
    next(turn for turn in job.follow() if turn.content)
    started = time.monotonic()
    job.stop()
    turn = kept(desk, job).turns[1]
    assert time.monotonic() - started < 2 and 0 < len(turn.content) < 200 and turn.ending == "cancelled"


def test_stopped_while_the_prompt_is_read_the_question_stays(make_desk: MakeDesk) -> None:
    desk = make_desk(lambda: EchoEngine(prefill_seconds=3))
    job = ask(desk, "a question")
    time.sleep(0.2)
    job.stop()
    talk = kept(desk, job)
    assert talk.turns[0].content == "a question" and talk.turns[1].content == ""
    assert [message.content for message in messages(talk, [*talk.turns, *Talk(id="x", turns=[
        Turn(role="user", content="next"), Turn(role="assistant")]).turns])] == ["next"]  # fmt: skip


def test_a_fault_is_a_sentence_in_the_conversation(make_desk: MakeDesk) -> None:
    class Failing(EchoEngine):
        def stream(self, *asked: Any, **more: Any) -> Generator[Chunk, None, None]:
            yield Chunk("so far", token_ids=(1,))
            raise DeviceError("the GPU was lost", hint="Update its driver.")

    desk = make_desk(Failing)
    turn = kept(desk, ask(desk, "hi")).turns[1]
    assert turn.content == "so far" and turn.notices == ["The GPU was lost. Update its driver."]
    assert turn.ending == "cancelled"


def test_too_long_a_question_is_told_of_and_not_sent_again(make_desk: MakeDesk) -> None:
    desk = make_desk(lambda: EchoEngine(context_length=64))
    talk = kept(desk, ask(desk, "word " * 40))
    assert "context" in talk.turns[1].notices[0]
    talk = kept(desk, ask(desk, "short", talk))
    assert talk.turns[3].content == "short"


def test_one_answer_at_a_time_in_a_conversation_and_several_in_others(make_desk: MakeDesk) -> None:
    desk = make_desk(lambda: EchoEngine(seconds_per_token=0.02))
    job = ask(desk, "x" * 60)
    with pytest.raises(UsageError, match="being answered"):
        ask(desk, "from another tab", job.talk)
    with pytest.raises(UsageError):
        desk.answers.idle(job.talk.id)
    other = ask(desk, "y")
    assert kept(desk, other).turns[1].content == "y" and kept(desk, job).turns[1].content == "x" * 60
    assert len(desk.store.get(job.talk.id).turns) == 2


def test_without_a_model_nothing_is_begun(make_desk: MakeDesk) -> None:
    desk = make_desk(model=None)
    with pytest.raises(Exception, match="no model is loaded"):
        ask(desk, "hi")
    assert desk.store.entries() == []


def test_deleted_on_the_way_it_ends(make_desk: MakeDesk) -> None:
    desk = make_desk(lambda: EchoEngine(seconds_per_token=0.05))
    job = ask(desk, "x" * 400)
    desk.store.delete(job.talk.id)
    assert job.over.wait(5) and desk.store.entries() == []


def test_a_full_disk_is_told_and_the_answer_goes_on(make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = make_desk(lambda: EchoEngine(seconds_per_token=0.03))
    job = ask(desk, "x" * 60)
    change = desk.store.change

    def full(*args: Any, **more: Any) -> Any:
        raise OutputError("the disk filled up", hint="Free some space.")

    monkeypatch.setattr(desk.store, "change", full)
    time.sleep(1.4)
    monkeypatch.setattr(desk.store, "change", change)
    turn = kept(desk, job).turns[1]
    assert turn.content == "x" * 60 and turn.notices == ["The disk filled up. Free some space."]


def test_settings_reach_the_engine(make_desk: MakeDesk) -> None:
    desk = make_desk(lambda: Scripted("ok"), settings=Settings(system="Be brief.", temperature=0.2, max_new_tokens=9))
    kept(desk, ask(desk, "hi"))
    (conversation, sampling) = desk.host.need_engine().asked[0]  # type: ignore[attr-defined]
    assert [(message.role, message.content) for message in conversation] == [("system", "Be brief."), ("user", "hi")]
    assert sampling.temperature == 0.2 and sampling.max_new_tokens == 9 and not sampling.keep_special


def test_a_tool_is_called_and_its_result_read(make_desk: MakeDesk) -> None:
    desk = make_desk(
        lambda: Scripted('Let me see.\ncalculate\n{"expression": "17 * 23"}', "It is 391."),
        settings=Settings(tools=True),
    )
    turn = kept(desk, ask(desk, "What is 17 * 23?")).turns[1]
    assert turn.content == "It is 391."
    assert turn.steps == [Step(name="calculate", arguments='{"expression": "17 * 23"}', result='{"result": 391}',
                               before="Let me see.")]  # fmt: skip
    first, second = (conversation for conversation, _ in desk.host.need_engine().asked)  # type: ignore[attr-defined]
    assert [tool["function"]["name"] for tool in first[0].tools] == ["calculate", "current_time"]
    assert [(message.role, message.metadata) for message in second[1:]] == [
        ("user", ""), ("assistant", ""), ("assistant", "calculate"), ("observation", "")
    ]  # fmt: skip
    assert second[-1].content == '{"result": 391}'


def test_a_wrong_call_is_answered_with_what_was_wrong(make_desk: MakeDesk) -> None:
    desk = make_desk(lambda: Scripted('calculate\n{"expression": "import os"}', "Sorry."),
                     settings=Settings(tools=True))  # fmt: skip
    turn = kept(desk, ask(desk, "hack")).turns[1]
    assert turn.steps[0].failed and "error" in str(turn.steps[0].result) and turn.content == "Sorry."


def test_calls_without_end_are_ended(make_desk: MakeDesk) -> None:
    desk = make_desk(lambda: Scripted(*['calculate\n{"expression": "1"}'] * 20), settings=Settings(tools=True))
    turn = kept(desk, ask(desk, "go on")).turns[1]
    assert len(turn.steps) == 8 and "8 times in a row" in turn.notices[0]


def test_a_thought_is_kept_apart(make_desk: MakeDesk) -> None:
    desk = make_desk(lambda: Scripted("Hmm, 2.</think>\nTwo.", opens_thought=True))
    turn = kept(desk, ask(desk, "1 + 1?")).turns[1]
    assert (turn.thought, turn.content) == ("Hmm, 2.", "Two.")


def test_a_restart_begins_the_answer_again(make_desk: MakeDesk) -> None:
    class Restarting(EchoEngine):
        def stream(self, *asked: Any, **more: Any) -> Generator[Chunk, None, None]:
            yield Chunk("wrong", token_ids=(1,))
            yield Chunk("", notice="GPU → CPU", restart=True)
            yield Chunk("right", usage=Usage(1, 1, 0.1, None, "stop"))

    turn = kept(desk := make_desk(Restarting), ask(desk, "hi")).turns[1]
    assert turn.content == "right" and turn.notices == ["GPU → CPU"]


def test_a_file_is_read_counted_and_asked_about(make_desk: MakeDesk, tmp_path: Path) -> None:
    desk = make_desk(lambda: Scripted("Seven."))
    (tmp_path / "note.txt").write_text("The box holds seven apples.", encoding="utf-8")
    read = desk.read(tmp_path / "note.txt", "note.txt")
    assert (read["name"], read["tokens"], read["context"]) == ("note.txt", 27, 4096)
    files = desk.take([read["key"]])
    talk = kept(desk, ask(desk, "How many?", files=files))
    conversation, _ = desk.host.need_engine().asked[0]  # type: ignore[attr-defined]
    assert "The box holds seven apples." in conversation[0].content and conversation[0].content.endswith("How many?")
    assert talk.turns[0].content == "How many?" and talk.turns[0].documents[0].name == "note.txt"
    assert talk.turns[1].notices == []
    with pytest.raises(UsageError, match="no longer"):
        desk.take(["x"])


def test_of_a_file_longer_than_the_context_what_was_left_out_is_told(make_desk: MakeDesk, tmp_path: Path) -> None:
    desk = make_desk(lambda: EchoEngine(context_length=2000))
    lines = [f"Paragraph {i} tells of nothing in particular, at some length." for i in range(200)]
    lines[150] = "The zebra is called Zoltan."
    (tmp_path / "long.txt").write_text("\n\n".join(lines), encoding="utf-8")
    read = desk.read(tmp_path / "long.txt", "long.txt")
    talk = kept(desk, ask(desk, "What is the zebra called?", files=desk.take([read["key"]])))
    assert "Left out: long.txt" in talk.turns[1].notices[0]
    assert "Zoltan" in talk.turns[0].asked and len(talk.turns[0].asked) < 2000


def test_a_file_that_cannot_be_read_is_a_sentence(make_desk: MakeDesk, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\x00\x01\x02" * 50)
    read = make_desk().read(tmp_path / "x.bin", "holiday.bin")
    assert set(read) == {"error"} and "holiday.bin" in read["error"] and str(tmp_path) not in read["error"]


def test_closing_keeps_what_was_under_way(make_desk: MakeDesk) -> None:
    desk = make_desk(lambda: EchoEngine(seconds_per_token=0.05))
    job = ask(desk, "x" * 200)
    next(turn for turn in job.follow() if turn.content)
    desk.close()
    turn = Store(desk.store.folder).get(job.talk.id).turns[1]
    assert turn.ending == "cancelled" and turn.content


def test_the_pulse_has_the_numbers_as_they_come(make_desk: MakeDesk) -> None:
    desk = make_desk(lambda: EchoEngine(seconds_per_token=0.02))
    before = desk.pulse({})
    assert before["machine"]["doing"] == "idle" and before["machine"]["why"] == [
        "GPU → CPU: this machine has no GPU that OpenVINO can use; it has CPU"
    ]
    assert 0 < before["machine"]["memory_free_bytes"] < before["machine"]["memory_total_bytes"]
    job = ask(desk, "x" * 80)
    time.sleep(0.8)
    during = desk.pulse({"open": job.talk.id})
    assert during["machine"]["doing"] == "writes" and 10 < during["machine"]["speed"] < 60
    assert 80 < during["machine"]["context_used"] < 160 and during["machine"]["ttft"] < 0.5
    assert during["open"]["busy"] and during["entries"][0]["busy"]
    job.over.wait(10)
    after = desk.pulse({"open": job.talk.id, "words": "nothing like it"})
    assert after["machine"]["doing"] == "idle" and len(after["machine"]["session"]) == 1
    assert after["entries"] == [] and after["open"]["revision"] > during["open"]["revision"]


def test_the_pulse_tells_the_adapters_that_are_on(make_desk: MakeDesk) -> None:
    def adapted() -> EchoEngine:
        engine = EchoEngine()
        engine.always_on = ("juniper", "poetry at 0.5")
        return engine

    assert make_desk(adapted).pulse({})["machine"]["adapters"] == ["juniper", "poetry at 0.5"]
    assert make_desk().pulse({})["machine"]["adapters"] == []


def test_the_memory_is_the_models_process_too(make_desk: MakeDesk) -> None:
    import psutil

    from edge.runtime import remote

    desk = make_desk()
    held = "import time; held = bytearray(b'x' * 200_000_000); print(flush=True); time.sleep(60)"
    others = subprocess.Popen([sys.executable, "-c", held], stdout=subprocess.PIPE)
    models = subprocess.Popen([*remote.COMMAND[:2], f"{held}  # {remote.COMMAND[2]}"], stdout=subprocess.PIPE)
    try:
        for process in (others, models):
            assert process.stdout is not None and process.stdout.readline()
        own = psutil.Process().memory_info().rss
        assert own + 200e6 < desk.pulse({})["machine"]["memory_bytes"] < own + 350e6
    finally:
        for process in (others, models):
            process.kill()
            process.communicate()


def test_the_pulse_speaks_the_pages_language(make_desk: MakeDesk) -> None:
    desk = make_desk()
    told = desk.pulse({"language": "zh"})
    assert told["machine"]["why"] == ["GPU → CPU：这台电脑没有 OpenVINO 可用的 GPU，有 CPU。"]
    assert desk.act({"do": "rename", "id": "x", "title": "y", "language": "zh"})["error"].startswith(
        "对话 'x' 已不存在"
    )
    desk.act({"do": "choose", "model": ""})
    assert desk.pulse({"language": "zh"})["host"]["error"] == "尚未选择。请填写文件夹或名称。"


def test_the_lists_buttons(make_desk: MakeDesk) -> None:
    desk = make_desk()
    job = ask(desk, "hello")
    talk = kept(desk, job)
    assert desk.act({"do": "rename", "id": talk.id, "title": "New name"}) == {}
    assert desk.store.get(talk.id).title == "New name"
    saved = desk.act({"do": "markdown", "id": talk.id})
    assert saved["name"] == "New name.md" and "hello" in saved["text"]
    assert desk.act({"do": "json", "id": talk.id})["name"] == "New name.json"
    assert desk.act({"do": "delete", "id": talk.id}) == {} and desk.store.entries() == []
    assert "any more" in desk.act({"do": "rename", "id": talk.id, "title": "x"})["error"]
    assert "no action" in desk.act({"do": "format the disk"})["error"]
    assert [each["model"] for each in desk.act({"do": "made"})["made"]] == ["echo", "other"]
