"""The Berkeley Function-Calling Leaderboard's simple cases: every accepted answer, there and back; and asking them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from benchmarks import tool_calls
from benchmarks.tool_calls import Case, cases
from edge.runtime.engine import Engine
from edge.runtime.template import Template
from edge.tools.constrain import demand
from edge.tools.parse import Parser, parse
from edge.tools.render import conversation
from edge.tools.schema import ebnf
from tests.tools.ebnf import Grammar
from tests.tools.test_render import OF_0414, OF_2024


@pytest.fixture
def bfcl(shared_data: Path) -> list[Case]:
    found = cases(shared_data / "bfcl")
    assert len(found) == 400
    return found


def test_what_is_written_of_a_call_is_read_again(bfcl: list[Case]) -> None:
    for case in bfcl:
        for answer in case.answers():
            arguments = json.dumps(answer, ensure_ascii=False)
            called = {"id": "a", "type": "function", "function": {"name": case.name, "arguments": arguments}}
            turns = conversation(
                [*case.messages, {"role": "assistant", "tool_calls": [called]},
                 {"role": "tool", "tool_call_id": "a", "content": "done"}],
                [case.tool],
            )  # fmt: skip
            for source in (OF_2024, OF_0414):
                text = Template(source).render(turns)
                assert json.dumps(case.tool["function"], indent=4, ensure_ascii=False) in text
                written = text.rpartition("<|observation|>")[0].rpartition("<|assistant|>")[2]
                assert written == f"{case.name}\n{arguments}"
                parsed = parse(written, [case.tool], new_id=lambda: "a")
                assert [(c.name, c.arguments, c.valid) for c in parsed.calls] == [(case.name, arguments, True)]
                assert not parsed.content and case.accepts(json.loads(parsed.calls[0].arguments))


def test_and_sign_by_sign(bfcl: list[Case]) -> None:
    for case in bfcl:
        arguments = json.dumps(next(case.answers()), ensure_ascii=False)
        parser = Parser([case.tool], new_id=lambda: "a")
        events: list[Any] = [event for sign in f"\n{case.name}\n{arguments}" for event in parser.push(sign)]
        events += parser.finish()
        assert (events[0].name, "".join(event.text for event in events[1:])) == (case.name, arguments)


def test_every_schema_is_enforced_and_holds_the_answers_that_fit_it(bfcl: list[Case]) -> None:
    fit = 0
    for case in bfcl:
        assert demand([case.tool], "required").grammar is not None
        grammar = Grammar(ebnf(json.dumps(case.schema)))
        assert grammar.alike() == []
        checker = jsonschema.Draft202012Validator(case.schema)
        for answer in case.answers():
            ordered = {name: answer[name] for name in case.schema["properties"] if name in answer}
            holds = grammar.holds(json.dumps(ordered, ensure_ascii=False))
            assert holds == checker.is_valid(answer), (case.id, answer)
            fit += holds
    assert fit > 700


def test_answers_that_were_cut_off_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {"type": "dict", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    function = {"name": "f", "description": "It tries.", "parameters": parameters}
    asked = {"id": "a", "question": [[{"role": "user", "content": "Try"}]], "function": [function]}
    (tmp_path / "bfcl" / "possible_answer").mkdir(parents=True)
    for place, line in ((".", asked), ("possible_answer", {"id": "a", "ground_truth": [{"f": {"x": [1]}}]})):
        (tmp_path / "bfcl" / place / tool_calls._FILE).write_text(json.dumps(line) + "\n", encoding="utf-8")
    (tmp_path / "edge.json").write_text('{"source": {"description": "a model"}}', encoding="utf-8")
    out = tmp_path / "out.json"
    ways: list[str] = []

    def answer(engine: Any, case: Case, way: str, settings: Any) -> dict[str, Any]:
        ways.append(way)
        finish = "tool_calls" if way == "drawn" else "length"
        judged = {"called": True, "valid": way == "drawn", "right": False}
        return {"text": f"{settings['drawn']}", "tokens": 1, "seconds": 1.0, "finish": finish, **judged}

    def run(*words: str) -> tuple[int, str, dict[str, Any]]:
        ways.clear()
        words = (str(tmp_path), str(tmp_path / "bfcl"), "--free", "0", "--out", str(out), *words)
        done = CliRunner().invoke(tool_calls.main, words)
        return done.exit_code, done.output, json.loads(out.read_text(encoding="utf-8"))

    monkeypatch.setattr(tool_calls, "_ask", answer)
    monkeypatch.setattr(Engine, "load", lambda folder, settings: SimpleNamespace(close=lambda: None))
    code, _, first = run()
    assert code == 0 and ways == ["required", "penalty", "drawn"]
    code, _, told = run("--again")
    assert code == 0 and ways == [] and told == first and "machine_of_the_drawn" not in told["settings"]
    code, said, told = run("--again", "--seed", "1")
    assert code == 2 and "'seed': 0}: give the same" in said and told == first
    del first["rows"][0]["drawn"]
    out.write_text(json.dumps(first), encoding="utf-8")
    code, _, told = run("--again", "--seed", "1")
    assert code == 0 and ways == ["drawn"] and told["settings"]["drawn"]["seed"] == 1
    assert told["settings"]["machine_of_the_drawn"] == told["machine"]
    assert "machine_of_the_penalty" not in told["settings"]
