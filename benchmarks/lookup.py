"""What prompt lookup gains where an answer repeats what was read, and whether the answers stay the model's own.

    python -m benchmarks.lookup MODEL --out benchmarks/results/lookup_cpu.json

Two engines are loaded, one that guesses and one that does not, and asked the same in turn, greedily. First in exact
arithmetic, where every token has to be the same. Then as a model is loaded by default: its 8-bit activations round
otherwise when several tokens are computed at once, as they do when several answers are made at once; how near the two
tokens were where the answers part is said, too.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import machine, versions
from edge.infer import EXACT
from edge.messages import Message, Sampling
from edge.runtime.engine import Engine
from edge.runtime.pipelines import ALIKE, GUESSED
from edge.runtime.settings import Settings

_LIGHTHOUSE = (
    "The lighthouse at Skerry Point was built in 1847 by a Scottish engineer named Alan Reid. It stands forty metres "
    "above the sea, and its lamp can be seen from a distance of thirty kilometres. For more than a century three "
    "keepers lived in the tower, until the light was made automatic in 1971. Today the building is a small museum, "
    "open from May to September."
)
_CODE = (
    "def total(prices, rate):\n    result = 0\n    for price in prices:\n        result += price * (1 + rate)\n"
    "    return result\n\n\ndef mean(prices):\n    return sum(prices) / len(prices)\n"
)
_STOCK = "\n".join(
    f"{i}. Item number {i} costs {i * 7 % 90} dollars and weighs {i * 13 % 50} kilograms." for i in range(1, 60)
)
_PROMPTS = (
    ("edit a paragraph", f"Copy the following text, but write 1850 instead of 1847:\n\n{_LIGHTHOUSE}"),
    ("edit code", f"Write this code again with the function total renamed to add_up:\n\n{_CODE}"),
    ("quote from a text", f"{_LIGHTHOUSE}\n\nQuote the sentences above that say who lived there, word for word."),
    ("quote from a long list", f"{_STOCK}\n\nCopy the lines from number 20 to number 25."),
    ("question on a text", f"{_LIGHTHOUSE}\n\nWhat can be visited at Skerry Point today, and since when?"),
    ("a story: nothing to repeat", "Write a story about a lighthouse."),
)
_MODES: tuple[tuple[str, dict[str, Any]], ...] = (("exact", dict(EXACT)), ("default", {}))


@dataclass
class _Answer:
    tokens: list[int]
    ttft_seconds: float
    decode_seconds: float


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", default=5, show_default=True)
@click.option("--tokens", default=120, show_default=True, help="Longest answer.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(model: Path, rounds: int, tokens: int, out: Path) -> None:
    """Measure and write the JSON and a table beside it."""
    result: dict[str, Any] = {
        "machine": machine(), "versions": versions("glm4-edge", "openvino", "openvino-genai"),
        "guessed_tokens": GUESSED, "longest_run": ALIKE, "longest_answer": tokens,
        "prompts": dict(_PROMPTS), "modes": {},
    }  # fmt: skip
    for mode, properties in _MODES:
        with _both(model, properties) as (own, guessing):
            found = result["modes"][mode] = {}
            for name, text in _PROMPTS:
                click.echo(f"{mode}: {name} …", err=True)
                found[name] = _compare(own, guessing, text, tokens, 1 if mode == "exact" else rounds)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8", newline="\n")
    out.with_suffix(".md").write_text(_table(result), encoding="utf-8", newline="\n")
    click.echo(_table(result))


@contextlib.contextmanager
def _both(model: Path, properties: dict[str, Any]) -> Iterator[tuple[Engine, Engine]]:
    # Without the prefix cache: a probe gives log-probabilities only of what it computes.
    settings = Settings("CPU", properties, context=4096, prefix_cache=False, prompt_lookup=True)
    with (
        Engine.load(model, replace(settings, prompt_lookup=False)) as own,
        Engine.load(model, settings) as guessing,
    ):
        own.warm_up()
        guessing.warm_up()
        yield own, guessing


def _compare(own: Engine, guessing: Engine, text: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Both in turn; the first to answer changes with every round."""
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=tokens)  # GLM-4 has no penalty
    answers: dict[str, list[_Answer]] = {"own": [], "guessing": []}
    for number in range(rounds):
        pair = [("own", own), ("guessing", guessing)]
        for name, engine in pair if number % 2 == 0 else reversed(pair):
            answers[name].append(_ask(engine, text, sampling))
    one, other = answers["own"][0].tokens, answers["guessing"][0].tokens
    part = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if part is None and len(one) != len(other):
        part = min(len(one), len(other))
    gap = None
    if part is not None and part < min(len(one), len(other)):
        prompt = own.encode([Message("user", text)])
        gap = abs(
            _log_prob(own, [*prompt, *one[:part]], one[part]) - _log_prob(own, [*prompt, *one[:part]], other[part])
        )
    return {
        "same_tokens": part is None, "first_different_token": part, "gap_nats": gap,
        "answer_tokens": len(one), "ratio": _ratio(answers),
        "samples": {name: [asdict(answer) for answer in given] for name, given in answers.items()},
    }  # fmt: skip


def _ask(engine: Engine, text: str, sampling: Sampling) -> _Answer:
    found: list[int] = []
    usage = None
    for chunk in engine.stream([Message("user", text)], sampling):
        found += chunk.token_ids
        usage = chunk.usage or usage
    assert usage is not None and usage.ttft_seconds is not None
    return _Answer(found, usage.ttft_seconds, usage.token_seconds[-1] - usage.token_seconds[0])


def _log_prob(engine: Engine, before: list[int], token: int) -> float:
    """Of the token after those before it, in nats."""
    told = engine.probe([*before, token, token]).log_probs
    return float("nan") if told is None else told[len(before) - 1]


def _ratio(answers: dict[str, list[_Answer]]) -> float:
    """Tokens/s of decode with guesses by those without; the medians'."""
    speeds = [
        statistics.median((len(each.tokens) - 1) / each.decode_seconds for each in answers[name])
        for name in ("guessing", "own")
    ]
    return speeds[0] / speeds[1]


def _table(result: dict[str, Any]) -> str:
    exact, default = result["modes"]["exact"], result["modes"]["default"]
    same = sum(each["same_tokens"] for each in exact.values())
    rows = [
        f"Prompt lookup on {result['machine']['cores']} cores of {result['machine']['cpu']}, greedy, no "
        f"penalty, {result['guessed_tokens']} tokens guessed at a step; OpenVINO GenAI "
        f"{result['versions']['openvino-genai']}. In exact arithmetic (f32, no 8-bit activations, cache in f32) "
        f"{same} of {len(exact)} answers are the same to the last token.", "",
        "Decode by default, tokens/s without and with, medians of "
        f"{len(next(iter(default.values()))['samples']['own'])}; where the answers part, and by how many nats the two "
        "tokens differ there:", "",
        "| answer | tokens | without | with | ratio | same, exact | same, default |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, found in default.items():
        speeds = [
            statistics.median((len(each["tokens"]) - 1) / each["decode_seconds"] for each in found["samples"][which])
            for which in ("own", "guessing")
        ]
        rows.append(
            f"| {name} | {found['answer_tokens']} | {speeds[0]:.0f} | {speeds[1]:.0f} | {found['ratio']:.2f} "
            f"| {_same(exact[name])} | {_same(found)} |"
        )
    return "\n".join(rows) + "\n"


def _same(found: dict[str, Any]) -> str:
    if found["same_tokens"]:
        return "yes"
    gap = "" if found["gap_nats"] is None else f" ({found['gap_nats']:.3f} nats)"
    return f"to token {found['first_different_token']}{gap}"


if __name__ == "__main__":
    main()
