"""What `benchmarks.reference_cuda` measured on a GPU, as a run that `glm4-edge bench compare` reads.

python -m benchmarks.reference_record benchmarks/results/reference_cuda.json cuda.json
glm4-edge bench compare cuda.json benchmarks/results/bench_9b_xeon.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edge.bench.case import Case, Measured, Sample
from edge.bench.record import Record
from edge.errors import UsageError


def main(argv: list[str] | None = None) -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="JSON of benchmarks.reference_cuda")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="9b", help="which of those that stage gpu measured")
    args = parser.parse_args(argv)
    told = json.loads(args.source.read_text(encoding="utf-8"))
    measured = told.get("gpu", {})
    if args.model not in measured:
        there = ", ".join(measured) or "nothing: run benchmarks.reference_cuda --stage gpu"
        parser.error(f"{args.source} has no --model {args.model}, but {there}")
    try:
        made = record(measured[args.model], args.model)
    except UsageError as error:
        parser.error(str(error))
    made.write(args.out)


def record(found: dict[str, Any], model: str) -> Record:
    """Every road that ran; the time from the first token to the last is spread evenly.

    Raises:
        UsageError: none ran, or an answer was too short to have a time from its first token to its last.
    """
    case = Case(found["settings"]["prompt"], found["settings"]["answer"])
    if case.new_tokens < 2:
        raise UsageError(
            f"{model} was measured with answers of {case.new_tokens} token, which say nothing of decoding",
            hint="Measure it with --answer 2 or more.",
        )
    measured = []
    roads = found.get("roads", {})
    for name, road in roads.items():
        if not road.get("samples"):
            continue
        about = {"name": model, "reference": True}
        made = Measured(f"{model} in bf16 by {name}", found["gpu"]["name"], about, {})
        for number, sample in enumerate(road["samples"]):
            step = sample["decode_s"] / (case.new_tokens - 1)
            times = tuple(sample["ttft_s"] + place * step for place in range(case.new_tokens))
            made.samples.append((case, Sample(number, case.prompt_tokens, case.prompt_tokens, times, times[-1])))
        measured.append(made)
    if not measured:
        said = "; ".join(f"{name}: {road.get('failure', 'not measured')}" for name, road in roads.items())
        raise UsageError(f"no road of {model} ran ({said or 'none was begun'})", hint="Measure it again.")
    rounds = max(len(each.samples) for each in measured)
    return Record(found.get("made", "-"), {"system": "Linux", **found["machine"]}, found["versions"], rounds, measured)


if __name__ == "__main__":
    main()
