"""Tool calls of a model under constrained decoding: how many fit their schema, how many are right.

    python -m benchmarks.tool_calls MODEL BFCL --out benchmarks/results/tool_calls.json

BFCL is a folder with `BFCL_v4_simple_python.json` of the Berkeley Function-Calling Leaderboard and its
`possible_answer` beside it: a question, one function, and the answers that are accepted. Each is asked with the call
required (`tool_choice`), greedy; where it was cut off, once more with a frequency penalty, which a small model needs so
that it ends; the first few also with the call left to the model. An answer is right if every
argument equals an accepted one and no other is missing; BFCL itself is more lenient with strings.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import machine, versions

_FILE = "BFCL_v4_simple_python.json"
_WAYS = ("required", "penalty", "auto")
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}


@dataclass(frozen=True)
class Case:
    """A question, its tool as OpenAI's API describes it, and the values accepted for each argument."""

    id: str
    messages: list[dict[str, Any]]
    tool: dict[str, Any]
    accepted: dict[str, list[Any]]

    @property
    def name(self) -> str:
        """The function's."""
        return str(self.tool["function"]["name"])

    @property
    def schema(self) -> dict[str, Any]:
        """Of its arguments."""
        schema: dict[str, Any] = self.tool["function"]["parameters"]
        return schema

    def answers(self) -> Iterator[dict[str, Any]]:
        """Accepted arguments, in which every accepted value stands at least once."""
        for turn in range(max(map(len, self.accepted.values()), default=1)):
            yield {
                name: _value(values[turn % len(values)], turn)
                for name, values in self.accepted.items()
                if values[turn % len(values)] != ""
            }

    def accepts(self, arguments: Mapping[str, Any]) -> bool:
        """Whether it is right. An argument for which "" is accepted may be missing."""
        return arguments.keys() <= self.accepted.keys() and all(
            any(_equal(arguments[name], value) for value in values) if name in arguments else "" in values
            for name, values in self.accepted.items()
        )


def cases(folder: Path) -> list[Case]:
    """Those of the file, in its order."""
    asked = _lines(folder / _FILE)
    answers = {line["id"]: line["ground_truth"] for line in _lines(folder / "possible_answer" / _FILE)}
    found = []
    for line in asked:
        (function,), ((name, accepted),) = line["function"], answers[line["id"]][0].items()
        assert name == function["name"]
        function = {**function, "parameters": _json_schema(function["parameters"])}
        found.append(Case(line["id"], line["question"][0], {"type": "function", "function": function}, accepted))
    return found


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _json_schema(given: Mapping[str, Any]) -> dict[str, Any]:
    """BFCL names types as Python does, and has a type of any and a word for optional."""
    schema = {word: value for word, value in given.items() if word != "optional"}
    schema["type"] = _TYPES.get(schema["type"], schema["type"])
    if schema["type"] == "any":
        del schema["type"]
    if "items" in schema:
        schema["items"] = _json_schema(schema["items"])
    if "properties" in schema:
        schema["properties"] = {name: _json_schema(inner) for name, inner in schema["properties"].items()}
    return schema


def _value(value: Any, turn: int) -> Any:
    """Of an accepted value, one value: an object's are lists of those accepted themselves."""
    if isinstance(value, dict):
        return {name: _value(inner[turn % len(inner)], turn) for name, inner in value.items()}
    return [_value(inner, turn) for inner in value] if isinstance(value, list) else value


def _equal(given: Any, accepted: Any) -> bool:
    if isinstance(accepted, dict):
        return (
            isinstance(given, dict)
            and given.keys() <= accepted.keys()
            and all(
                any(_equal(given[name], one) for one in values) if name in given else "" in values
                for name, values in accepted.items()
            )
        )
    if isinstance(accepted, list):
        return (
            isinstance(given, list)
            and len(given) == len(accepted)
            and all(_equal(one, other) for one, other in zip(given, accepted, strict=True))
        )
    return bool(given == accepted) and isinstance(given, bool) == isinstance(accepted, bool)


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("bfcl", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--cases", "count", default=400, show_default=True, help="From the first.")
@click.option("--free", default=40, show_default=True, help="Of these, those left to the model as well.")
@click.option("--new-tokens", default=512, show_default=True, help="At most, in an answer.")
@click.option("--penalty", default=0.6, show_default=True, help="The frequency penalty where it was cut off.")
@click.option("--device", default="CPU", show_default=True)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(
    model: Path, bfcl: Path, count: int, free: int, new_tokens: int, penalty: float, device: str, out: Path
) -> None:
    """Ask, judge, and write both files."""
    from edge.runtime.engine import Engine
    from edge.runtime.settings import Settings

    chosen = cases(bfcl)[:count]
    engine = Engine.load(model, Settings(device))
    rows = []
    try:
        for number, case in enumerate(chosen):
            row: dict[str, Any] = {"id": case.id}
            row["required"] = _ask(engine, case, "required", new_tokens, penalty)
            if row["required"]["finish"] == "length":
                row["penalty"] = _ask(engine, case, "penalty", new_tokens, penalty)
            if number < free:
                row["auto"] = _ask(engine, case, "auto", new_tokens, penalty)
            rows.append(row)
            click.echo(f"\r{number + 1}/{len(chosen)} ", nl=False, err=True)
    finally:
        engine.close()
    manifest = json.loads((model / "edge.json").read_text(encoding="utf-8"))
    result = {
        "machine": machine(),
        "versions": versions("glm4-edge", "openvino", "openvino-genai", "jsonschema"),
        "settings": {
            "cases": len(chosen),
            "free": min(free, len(chosen)),
            "new_tokens": new_tokens,
            "temperature": 0,
            "frequency_penalty": penalty,
            "device": device,
        },
        "model": manifest["source"]["description"],
        "shares": {way: _shares(asked) for way in _WAYS if (asked := [row[way] for row in rows if way in row])},
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    out.with_suffix(".md").write_text(report(result), encoding="utf-8", newline="\n")
    click.echo(report(result))


def _ask(engine: Any, case: Case, way: str, new_tokens: int, penalty: float) -> dict[str, Any]:
    import jsonschema

    from edge.messages import Sampling
    from edge.tools.constrain import demand
    from edge.tools.parse import parse
    from edge.tools.render import conversation

    choice = "auto" if way == "auto" else "required"
    wanted = demand([case.tool], choice, parallel=False, opened=engine.opens_thought)
    how = Sampling(
        temperature=0,
        frequency_penalty=penalty if way == "penalty" else None,
        max_new_tokens=new_tokens,
        grammar=wanted.grammar,
        keep_special=True,
    )
    begin = time.perf_counter()
    chunks = list(engine.stream(conversation(case.messages, wanted.tools), how))
    seconds = time.perf_counter() - begin
    text, usage = "".join(chunk.text for chunk in chunks), chunks[-1].usage
    parsed = parse(text, wanted.tools, opened=engine.opens_thought, parallel=wanted.parallel)
    row = {
        "text": text, "tokens": usage.completion_tokens, "seconds": round(seconds, 3),
        "finish": parsed.finish_reason(usage.finish_reason), "called": bool(parsed.calls), "valid": False,
        "right": False,
    }  # fmt: skip
    if parsed.calls and parsed.calls[0].valid:
        arguments = json.loads(parsed.calls[0].arguments)
        row["valid"] = jsonschema.Draft202012Validator(case.schema).is_valid(arguments)
        row["right"] = row["valid"] and case.accepts(arguments)
    return row


def _shares(rows: list[dict[str, Any]]) -> dict[str, Any]:
    shares = {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in ("called", "valid", "right")}
    ended = [row for row in rows if row["called"] and row["finish"] != "length"]
    return {
        "cases": len(rows),
        **shares,
        "cut_off": sum(row["finish"] == "length" for row in rows),
        "calls_ended": len(ended),
        "valid_of_ended": round(sum(row["valid"] for row in ended) / len(ended), 4) if ended else None,
        "median_seconds": round(statistics.median(row["seconds"] for row in rows), 3),
    }


def report(result: Mapping[str, Any]) -> str:
    """The shares, as Markdown."""
    settings, machine_ = result["settings"], result["machine"]
    lines = [
        "# Tool calls",
        "",
        f"Cases of BFCL simple_python. {result['model']}. Greedy, at most {settings['new_tokens']} "
        f"tokens; {settings['device']}, {machine_['cpu']}, {machine_['cores']} cores; openvino-genai "
        f"{result['versions']['openvino-genai']}. Made by `python -m benchmarks.tool_calls`.",
        "",
        "| tool_choice | cases | a call | fits the schema | right | cut off | of calls that ended, fit |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for choice, shares in result["shares"].items():
        named = (
            f"those cut off, with a frequency penalty of {settings['frequency_penalty']}"
            if choice == "penalty"
            else choice
        )
        cells = [named, shares["cases"], *(f"{shares[name]:.1%}" for name in ("called", "valid", "right"))]
        ended = shares["valid_of_ended"]
        cells += [shares["cut_off"], "none ended" if ended is None else f"{ended:.1%} of {shares['calls_ended']}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if elsewhere := settings.get("machine_of_the_penalty"):
        lines += ["", f"Those cut off were asked again on another machine: {elsewhere['cpu']}."]
    lines += [
        "",
        "A grammar holds the form of what is written, not its length: a call that reaches the limit of tokens inside a "
        "string or a list is cut off, fits nothing, and is reported as `length`. Times stand in the JSON; the machine "
        "had other work.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
