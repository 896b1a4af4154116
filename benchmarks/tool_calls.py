"""Tool calls of a model under constrained decoding: how many fit their schema, how many are right.

    python -m benchmarks.tool_calls MODEL BFCL --out benchmarks/results/tool_calls.json

BFCL is a folder with `BFCL_v4_simple_python.json` of the Berkeley Function-Calling Leaderboard and its
`possible_answer` beside it: a question, one function, and the answers that are accepted. Each is asked with the call
required (`tool_choice`), greedy; where it was cut off, once more with a frequency penalty, which a small model needs so
that it ends; where it was cut off again, a third time, drawn at random with a seed. The first few are also asked with
the call left to the model. An answer is right if every argument equals an accepted one and no other is missing; BFCL
itself is more lenient with strings.

With --again the answers in --out stay, and those that are still cut off are asked in the ways they were not yet.
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
_REQUIRED = ("required", "penalty", "drawn")
"""Each where the one before was cut off."""
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
@click.option("--temperature", default=0.7, show_default=True, help="Of the third time.")
@click.option("--top-p", default=0.9, show_default=True, help="Of the third time.")
@click.option("--seed", default=0, show_default=True, help="Of the third time.")
@click.option("--again", is_flag=True, help="Go on from the answers in --out; ask only those that are cut off.")
@click.option("--device", default="CPU", show_default=True)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(
    model: Path, bfcl: Path, count: int, free: int, new_tokens: int, penalty: float, temperature: float, top_p: float,
    seed: int, again: bool, device: str, out: Path,
) -> None:  # fmt: skip
    """Ask, judge, and write both files."""
    chosen = cases(bfcl)[:count]
    manifest = json.loads((model / "edge.json").read_text(encoding="utf-8"))
    settings = {
        "cases": len(chosen), "free": min(free, len(chosen)), "new_tokens": new_tokens, "temperature": 0,
        "device": device, "frequency_penalty": penalty,
        "drawn": {"temperature": temperature, "top_p": top_p, "seed": seed},
    }  # fmt: skip
    result = {
        "machine": machine(),
        "versions": versions("glm4-edge", "openvino", "openvino-genai", "jsonschema"),
        "settings": settings,
        "model": manifest["source"]["description"],
        "shares": {},
        "rows": [{"id": case.id} for case in chosen],
    }
    if again:
        result = _taken_up(result, json.loads(out.read_text(encoding="utf-8")))
    asked = _ask_all(model, device, chosen, result, free=0 if again else free)
    if again:
        result["settings"] |= {f"machine_of_the_{way}": machine() for way in sorted(asked)}
    result["shares"] = shares(result["rows"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    out.with_suffix(".md").write_text(report(result), encoding="utf-8", newline="\n")
    click.echo(report(result))


def _taken_up(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """An earlier result, to be gone on with; what is asked from now on may run on another machine.

    Raises:
        UsageError: it was made of something else, or has answers drawn otherwise.
    """
    drawn = before["settings"].get("drawn")
    if drawn != now["settings"]["drawn"] and any("drawn" in row for row in before["rows"]):
        raise click.UsageError(f"--out has answers drawn with {drawn}: give the same, or leave out --again.")
    told = {**before["settings"], "drawn": now["settings"]["drawn"]}
    told = {name: value for name, value in told.items() if name != "free" and not name.startswith("machine_of_")}
    asked = {name: value for name, value in now["settings"].items() if name != "free"}
    if told != asked or before["model"] != now["model"]:
        raise click.UsageError("--out has answers of another model, or to other settings: leave out --again.")
    before["settings"] |= {"drawn": asked["drawn"]}
    return before


def _last(row: Mapping[str, Any]) -> str:
    """How it was asked last, the call being required."""
    return [way for way in _REQUIRED if way in row][-1]


def _ask_all(model: Path, device: str, chosen: list[Case], result: dict[str, Any], *, free: int) -> set[str]:
    """Ask what has no answer yet, and say in which ways that was."""
    from edge.runtime.engine import Engine
    from edge.runtime.settings import Settings

    asked: set[str] = set()
    engine = Engine.load(model, Settings(device))
    try:
        for number, (case, row) in enumerate(zip(chosen, result["rows"], strict=True)):
            for way in _REQUIRED:
                if way not in row:
                    row[way] = _ask(engine, case, way, result["settings"])
                    asked.add(way)
                if row[way]["finish"] != "length":
                    break
            if number < free:
                row["auto"] = _ask(engine, case, "auto", result["settings"])
            click.echo(f"\r{number + 1}/{len(chosen)} ", nl=False, err=True)
    finally:
        engine.close()
    return asked


def _ask(engine: Any, case: Case, way: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    import jsonschema

    from edge.messages import Sampling
    from edge.tools.constrain import demand
    from edge.tools.parse import parse
    from edge.tools.render import conversation

    choice = "auto" if way == "auto" else "required"
    wanted = demand([case.tool], choice, parallel=False, opened=engine.opens_thought)
    drawn = settings["drawn"] if way == "drawn" else {"temperature": 0}
    how = Sampling(
        **drawn,
        frequency_penalty=settings["frequency_penalty"] if way == "penalty" else None,
        max_new_tokens=settings["new_tokens"],
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


def shares(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each way to ask; and "in the end", of the last answer to each case with the call required."""
    asked = {way: [row[way] for row in rows if way in row] for way in _REQUIRED}
    asked["in the end"] = [row[_last(row)] for row in rows]
    asked["auto"] = [row["auto"] for row in rows if "auto" in row]
    return {way: _shares(answers) for way, answers in asked.items() if answers}


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
        f"Cases of BFCL simple_python. {result['model']}. Greedy where nothing else is said, at most "
        f"{settings['new_tokens']} tokens; {settings['device']}, {machine_['cpu']}, {machine_['cores']} cores; "
        f"openvino-genai {result['versions']['openvino-genai']}. Made by `python -m benchmarks.tool_calls`.",
        "",
        "| tool_choice | cases | a call | fits the schema | right | cut off | of calls that ended, fit |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    drawn = settings["drawn"]
    names = {
        "penalty": f"those cut off, with a frequency penalty of {settings['frequency_penalty']}",
        "drawn": f"those cut off again, drawn at temperature {drawn['temperature']} and top_p {drawn['top_p']}, "
        f"seed {drawn['seed']}",
        "in the end": "required, the last answer to each",
    }
    for choice, share in result["shares"].items():
        cells = [names.get(choice, choice), share["cases"]]
        cells += [f"{share[name]:.1%}" for name in ("called", "valid", "right")]
        ended = share["valid_of_ended"]
        cells += [share["cut_off"], "none ended" if ended is None else f"{ended:.1%} of {share['calls_ended']}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for way in ("penalty", "drawn"):
        if elsewhere := settings.get(f"machine_of_the_{way}"):
            lines += ["", f"Asked on {elsewhere['cpu']}, {elsewhere['cores']} cores: {names[way]}."]
    lines += [
        "",
        "A grammar holds the form of what is written, not its length: a call that reaches the limit of tokens inside a "
        "string or a list is cut off, fits nothing, and is reported as `length`. Times stand in the JSON; the machine "
        "had other work.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
