"""What is shown, the tools, the words, and the way from no model to one."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from edge.errors import UsageError
from edge.ui.web import helpers, shown, words
from edge.ui.web.desk import Desk
from edge.ui.web.talk import Document, Settings, Step, Talk, Turn

MakeDesk = Callable[..., Desk]
WEB = Path(shown.__file__).parent


@pytest.mark.parametrize(
    ("typed", "seen"),
    [
        ("<b>bold</b> & more", "&#x0003c;b>bold&#x0003c;/b> &#x00026; more"),
        ("a `<i>` tag", "a `<i>` tag"),
        ("<p>\n```html\n<p>x</p>\n```\n<p>", "&#x0003c;p>\n```html\n<p>x</p>\n```\n&#x0003c;p>"),
        ("~~~\n<p>\n~~~\n<p>", "~~~\n<p>\n~~~\n&#x0003c;p>"),
        ("```\n<p> not closed yet", "```\n<p> not closed yet"),
        ("so:\n\n    <p>code</p>\n\n<p>", "so:\n\n    <p>code</p>\n\n&#x0003c;p>"),
        ("two ``a ` <b>`` and <b>", "two ``a ` <b>`` and &#x0003c;b>"),
        ("one ` alone <b>", "one ` alone &#x0003c;b>"),
        ("from $5 to $6 and <b>", "from $5 to $6 and &#x0003c;b>"),
        ("is $a < b$ so", "is \\(a \\lt  b\\) so"),
        ("$$a<b$$", "$$a\\lt b$$"),
        ("\\[ x \\] and \\(y\\)", "\\[ x \\] and \\(y\\)"),
        ("`$a$` and ```$b$```", "`$a$` and ```$b$```"),
    ],
)
def test_text_is_shown_as_it_was_written(typed: str, seen: str) -> None:
    assert shown.text(typed) == seen


@pytest.mark.parametrize(
    "written", ["a < b && c <b>x</b>", "say `&lt;` and &amp; <i>", "```\n<p>&lt;\n```", "two\n\nparts"]
)
def test_what_is_edited_is_what_was_written(written: str) -> None:
    talk = Talk(id="x", turns=[
        Turn(role="user", content=written, documents=[Document(name="a<b>.txt", text="t", tokens=3)]),
        Turn(role="user", content=written),
        Turn(role="user", documents=[Document(name="alone.txt", text="t", tokens=3)]),
    ])  # fmt: skip
    with_file, without, file_alone = shown.messages(talk, None, words.ZH)[0]
    assert "a&#x0003c;b>.txt" in with_file["content"] and shown.edited(with_file["content"]) == written
    assert shown.edited(without["content"]) == written and shown.edited(file_alone["content"]) == ""


def test_a_fault_is_marked_and_other_remarks_are_not() -> None:
    fault = Turn(role="assistant", ending="cancelled", failed=True, notices=["It goes on on CPU.", "CPU failed."])
    stopped = Turn(role="assistant", content="h", ending="cancelled", notices=["It goes on on CPU."])
    remark = Turn(role="assistant", content="hi", ending="stop", notices=["It goes on on CPU."])
    messages, _ = shown.messages(Talk(id="x", turns=[fault, remark, stopped]), None, words.EN)
    assert messages[0]["content"] == "> It goes on on CPU.\n\n> ***!*** CPU failed."
    assert messages[2]["content"] == "h\n\n*(stopped)*\n\n> It goes on on CPU."
    assert messages[1]["content"] == "hi\n\n> It goes on on CPU."


def test_each_message_knows_its_turn() -> None:
    talk = Talk(id="x", turns=[
        Turn(role="user", content="hi", documents=[Document(name="a.txt", text="t", tokens=1234)]),
        Turn(role="assistant", content="done", thought="hm", ending="stop",
             steps=[Step(name="calculate", arguments='{"expression":"1"}', result="1", before="so")]),
        Turn(role="user", content="more"),
        Turn(role="assistant", content="ha", ending="partial"),
    ])  # fmt: skip
    messages, places = shown.messages(talk, None, words.EN)
    assert places == [0, 1, 1, 1, 1, 2, 3]
    assert "1,234 tokens" in messages[0]["content"]
    assert messages[1]["metadata"]["title"] == "Thought" and messages[3]["metadata"]["title"] == "calculate · done"
    assert messages[-1]["content"] == "ha\n\n*(cut off: the program ended here)*"
    coming = Turn(role="assistant", ending="partial")
    assert shown.messages(talk, coming, words.ZH)[0][-1]["content"] == "*正在阅读……*"


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2 + 2", 4), ("17*23", 391), ("2^10", 1024), ("sqrt(2) ** 2", 2.0000000000000004), ("7 // 2", 3), ("-3 % 5", 2),
     ("round(10/3, 2)", 3.33), ("6 ÷ 4 × 2", 3), ("max(1, 2, pi)", 3.141592653589793)],
)  # fmt: skip
def test_sums(expression: str, value: float) -> None:
    assert helpers.calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["", "1/0", "__import__('os')", "(1).real", "9**9**9", "2**100000", "x", "'a'*9", "[1]", "1" * 500, "sqrt(-1)",
     "lambda: 1", "True", "(-8)**0.5", "sqrt(x=1)", "((((", "sqrt()", "factorial(9)"],
)  # fmt: skip
def test_what_is_no_sum_is_told_and_never_run(expression: str) -> None:
    result, failed = helpers.call("calculate", json.dumps({"expression": expression}))
    assert failed and json.loads(result)["error"]


def test_the_clock() -> None:
    now = datetime(2026, 2, 3, 4, 5, 6, tzinfo=timezone.utc)
    told = helpers.current_time("Asia/Shanghai", now)
    assert told == {"time": "2026-02-03T12:05:06+08:00", "weekday": "Tuesday", "utc_offset": "8:00:00"}
    assert helpers.call("current_time", '{"time_zone": "Mars/Base"}')[1]
    assert not helpers.call("current_time", "")[1] and helpers.call("current_time", "[]")[1]
    assert helpers.call("rm", "{}") == ('{"error": "there is no tool rm"}', True)


def test_both_languages_say_everything_with_the_same_places() -> None:
    assert set(words.EN) == set(words.ZH)
    for key, english in words.EN.items():
        assert sorted(re.findall(r"\{.*?\}", english)) == sorted(re.findall(r"\{.*?\}", words.ZH[key])), key


def test_the_script_says_nothing_that_has_no_words() -> None:
    used: set[str] = set()
    for path in WEB.glob("*.js"):
        used |= set(re.findall(r"""\b(?:say|button|row|item)\("([^"`]+)\"""", path.read_text(encoding="utf-8")))
    assert len(used) > 50 and used <= set(words.EN)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("temperature", 9, "temperature 9 cannot be. Name a number up to 2.0"),
     ("top_p", 0, "top_p 0 cannot be. Name a number above 0.0"),
     ("seed", -1, "seed -1 cannot be. Name a number from 0 on"),
     ("max_new_tokens", 1.5, "max_new_tokens 1.5 cannot be. ")],
)  # fmt: skip
def test_a_number_out_of_its_range_is_told(name: str, value: float, told: str) -> None:
    from edge.ui.web import controls

    with pytest.raises(UsageError) as refused:
        controls.settings(Settings(), name, value)
    assert str(refused.value).startswith(told)


@pytest.mark.parametrize(
    ("header", "language"),
    [("zh-CN,zh;q=0.9,en;q=0.8", words.ZH), ("en-US,en", words.EN), ("fr,zh;q=0.5", words.ZH), (None, words.EN),
     ("de", words.EN), ("en;q=0.2, zh-TW;q=0.7", words.ZH), ("zh;q=x,en", words.EN)],
)  # fmt: skip
def test_the_browsers_language_chooses(header: str | None, language: Any) -> None:
    assert words.preferred(header) is language


def stages(desk: Desk, until: str) -> list[str]:
    seen: list[str] = []
    for _ in range(400):
        stage = desk.host.state()["stage"]
        seen += [] if seen and seen[-1] == stage else [stage]
        if stage == until:
            return seen
        time.sleep(0.01)
    raise AssertionError(seen)


def test_from_no_model_to_one(make_desk: MakeDesk) -> None:
    desk = make_desk(model=None, step_seconds=0.03)
    assert desk.act({"do": "choose", "model": " pocket "}) == {}
    stages(desk, "costed")
    state = desk.host.state()
    assert state["model"] == "pocket" and state["cost"]["seconds"]["total"] == 75
    desk.act({"do": "export", "model": "pocket"})
    desk.act({"do": "export", "model": "pocket"})  # the same button in another tab
    assert stages(desk, "ready")[0] == "export"
    assert desk.host.need_engine().name == "echo" and desk.host.remarks


def test_an_export_is_stopped_and_goes_on(make_desk: MakeDesk) -> None:
    desk = make_desk(model=None, step_seconds=0.05)
    desk.act({"do": "export", "model": "pocket"})
    time.sleep(0.15)
    assert desk.host.state()["what"].startswith("compressing layer")
    desk.act({"do": "stop"})
    stages(desk, "stopped")
    done = desk.host.backend.done  # type: ignore[attr-defined]
    assert 0 < done < 10 and desk.host.state()["error"] is None and desk.host.engine is None
    desk.act({"do": "export", "model": "pocket"})
    stages(desk, "ready")


@pytest.mark.parametrize(
    ("model", "error"),
    [("broken", "There is no folder broken. Name a folder that is there."), ("", "Nothing was chosen"),
     ("models/locked", "The GPU has no room for it. Take the CPU.")],
)  # fmt: skip
def test_what_cannot_be_is_a_sentence_and_one_may_choose_again(make_desk: MakeDesk, model: str, error: str) -> None:
    desk = make_desk(model=None)
    desk.act({"do": "choose", "model": model})
    assert desk.host.wait(10)
    assert desk.host.state()["stage"] == "choose" and desk.host.state()["error"].startswith(error)
    desk.act({"do": "back"})
    assert desk.host.state()["error"] is None


def test_another_model_takes_the_place_of_the_first(make_desk: MakeDesk) -> None:
    desk = make_desk()
    first = desk.host.engine
    desk.act({"do": "choose", "model": "other"})
    assert desk.host.wait(10) and desk.host.engine is not first
    assert desk.host.backend.closed == [first]  # type: ignore[attr-defined]


def test_who_looked_at_another_model_goes_on_with_the_first(make_desk: MakeDesk) -> None:
    desk = make_desk()
    first = desk.host.engine
    desk.act({"do": "choose", "model": "pocket"})
    stages(desk, "costed")
    desk.act({"do": "back"})
    assert desk.host.state()["stage"] == "ready" and desk.host.engine is first


def test_the_first_model_is_given_back_before_the_next_is_loaded(make_desk: MakeDesk) -> None:
    desk = make_desk()
    first = desk.host.engine
    desk.act({"do": "choose", "model": "models/locked"})
    assert desk.host.wait(10)
    state = desk.host.state()
    assert desk.host.backend.closed == [first] and not state["loaded"]  # type: ignore[attr-defined]
    assert state["stage"] == "choose" and "no room" in state["error"]


def test_closing_does_not_wait_for_a_model_that_is_being_loaded(make_desk: MakeDesk) -> None:
    desk = make_desk(model=None)
    backend: Any = desk.host.backend
    loading, opened = threading.Event(), backend.open

    def slow(*asked: Any) -> Any:
        assert loading.wait(20)
        return opened(*asked)

    backend.open = slow
    desk.host.choose("echo")
    stages(desk, "load")
    began = time.monotonic()
    desk.close()
    assert time.monotonic() < began + 5
    loading.set()
    assert desk.host.wait(10)
    assert desk.host.engine is None and len(backend.closed) == 1  # it gives back what came too late


def test_with_yes_it_is_exported_at_once(make_desk: MakeDesk) -> None:
    desk = make_desk(model=None)
    desk.host.choose("pocket", at_once=True)
    assert "costed" not in stages(desk, "ready")


def test_the_device_warms_up_while_the_visitor_types(make_desk: MakeDesk) -> None:
    from edge.errors import DeviceError
    from edge.runtime.echo import EchoEngine

    warmed = threading.Event()

    class Cold(EchoEngine):
        def warm_up(self) -> None:
            warmed.set()
            raise DeviceError("GPU failed", hint="Update the driver.")

    make_desk(Cold)
    assert warmed.wait(10)
