"""The reference on CUDA, and exported models on the CPU beside it.

    python -m benchmarks.reference_cuda --stage gpu --out benchmarks/results/reference_cuda.json
    python -m benchmarks.reference_cuda --stage cpu --work SCRATCH --out benchmarks/results/reference_cuda.json
    python -m benchmarks.reference_cuda --stage parity --model pocket --work SCRATCH --out …

Stage gpu: eager transformers, transformers' own static cache, and the decoder of `glm4-edge reference`, in turn, with
GLM-4-9B's shape and random weights; it needs PyTorch, transformers and safetensors only, and no disk. Stage cpu: the
same model in int4 and bf16 on the CPU. Stage parity: `glm4-edge reference` on the device, and `glm4-edge parity` of the
exported models. Each adds to the same JSON and saves after every step, so that one that is cut off leaves what it
measured; a table stands beside it as Markdown.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import reference_cpu, reference_gpu, synthetic
from benchmarks.machine import machine
from benchmarks.reference_gpu import EAGER, ROADS

PACKAGES = ("torch", "triton", "transformers", "numpy", "openvino", "openvino-genai", "nncf")
STAGES: dict[str, Callable[[argparse.Namespace, dict[str, Any], Callable[[], None]], None]] = {
    "gpu": reference_gpu.measure,
    "cpu": reference_cpu.measure,
    "parity": reference_cpu.parity,
}


def main(argv: list[str] | None = None) -> None:
    """Measure one stage of one model, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=sorted(STAGES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON; a stage adds to what is there")
    parser.add_argument("--work", type=Path, help="of cpu and parity: folder for checkpoints and exports, kept")
    parser.add_argument("--model", "--shape", choices=[*sorted(synthetic.SHAPES), "pocket"], default="9b")
    parser.add_argument("--layers", type=int, help="instead of the shape's own number")
    parser.add_argument("--prompt", type=int, default=1000, help="tokens in")
    parser.add_argument("--answer", type=int, default=128, help="tokens out")
    parser.add_argument("--repeats", type=int, default=5, help="of each road, in turn; one more warms up")
    parser.add_argument("--weights", default="int4,bf16", help="of cpu and parity: which exports")
    parser.add_argument("--roads", help=f"of gpu, semicolons between: some of {'; '.join(ROADS)}; left out: all")
    parser.add_argument("--no-static", action="store_true", help="leave out transformers' own compiled decoding")
    parser.add_argument("--profile", action="store_true", help="keep what each kernel took in a step")
    parser.add_argument("--minutes", type=float, default=8.5, help="of gpu: begin no further road after this time")
    parser.add_argument("--device", default="cuda", help="of gpu and parity")
    args = parser.parse_args(argv)
    if args.stage != "gpu" and args.work is None:
        parser.error(f"--stage {args.stage} needs --work")
    result: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}

    def save() -> None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        args.out.write_text(text, encoding="utf-8", newline="\n")
        args.out.with_suffix(".md").write_text(markdown(result), encoding="utf-8", newline="\n")

    settings = {name: value for name, value in vars(args).items() if name not in ("out", "work")}
    made: dict[str, Any] = {"machine": machine(), "versions": _versions(), "settings": settings}
    result.setdefault(args.stage, {})[args.model] = made
    STAGES[args.stage](args, made, save)
    save()


def markdown(result: dict[str, Any]) -> str:
    """The tables of what has been measured so far."""
    made_by = "Made by `python -m benchmarks.reference_cuda`; raw samples, machines and settings are in the JSON."
    lines = ["# The reference on CUDA", "", made_by]
    for stage, table in (("gpu", _gpu_table), ("cpu", _cpu_table), ("parity", _parity_table)):
        for model, found in result.get(stage, {}).items():
            title, said, head, rows = table(found)
            lines += ["", f"## {_NAMES.get(model, model)}: {title}", "", said, ""]
            lines += [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


Table = tuple[str, str, list[str], list[list[str]]]
"""Title, what is said before it, head and rows."""


def _gpu_table(found: dict[str, Any]) -> Table:
    gpu, settings, roads = found.get("gpu", {}), found["settings"], found.get("roads", {})
    said = (
        f"{settings['prompt']:,} tokens in, {settings['answer']} out, greedy, bf16; medians of {settings['repeats']}. "
        f"{_versions_line(found['versions'])}."
    )
    if gpu:
        said += (
            f" The GPU reads its memory at {gpu['read_gb_per_s']:,.0f} GB/s: at most {gpu['floor_tokens_per_s']:.0f} "
            "tokens/s."
        )
    eager = roads.get(EAGER, {}).get("decode_tokens_per_s")
    rows = []
    for name, road in roads.items():
        if "decode_tokens_per_s" not in road:
            why = road.get("failure", "cut off").replace("\n", " ").replace("|", "/")
            rows.append([name, f"did not run: {why[:80]}", "", "", "", ""])
            continue
        rate, unlike = road["decode_tokens_per_s"], road["first_token_unlike_eager"]
        rows.append([name, f"{rate:.1f}", f"{rate / eager:.2f}" if eager else "", f"{road['ttft_s'] * 1000:.0f}",
                     "none" if unlike is None else f"{unlike}", f"{road['first_run_s']:.0f}"])  # fmt: skip
    head = ["", "decode, tokens/s", "of eager", "TTFT, ms", "first token unlike eager's", "first run, s"]
    return f"transformers on {gpu.get('name', 'the CPU')}", said, head, rows


def _cpu_table(found: dict[str, Any]) -> Table:
    rows = []
    for weights, row in found.items():
        if isinstance(row, dict) and "decode_tokens_per_s" in row:
            rows.append([weights, f"{row['decode_tokens_per_s']:.1f}", f"{row['prefill_tokens_per_s']:.0f}",
                         f"{row['ttft_s']:.2f}", "" if row["export_s"] is None else f"{row['export_s']:.0f}",
                         f"{row['load_s'] + row['warm_up_s']:.1f}"])  # fmt: skip
    head = ["", "decode, tokens/s", "prefill, tokens/s", "TTFT, s", "export, s", "loading and warming up, s"]
    title = f"exported, on {found['machine']['cpu']}, {found['machine']['cores']} cores"
    return title, _versions_line(found["versions"]) + ".", head, rows


def _parity_table(found: dict[str, Any]) -> Table:
    rows = []
    for weights, row in found.items():
        for group, f in row.get("groups", {}).items() if isinstance(row, dict) else ():
            rows.append([f"{weights}, {group}", f"{f['prompts']}", f"{f['positions']}", f"{f['kl_mean']:.4f}",
                         f"{f['kl_p99']:.3f}", f"{f['kl_worst']:.3f}", f"{f['top1']:.1%}", f"{f['top5']:.1%}",
                         f"{f['perplexity_reference']:.2f}", f"{f['perplexity']:.2f}",
                         f"{f['same_answers']}/{f['prompts']}"])  # fmt: skip
    head = ["", "prompts", "positions", "KL mean", "p99", "worst", "top-1", "top-5", "perplexity of the reference",
            "perplexity", "answers alike"]  # fmt: skip
    made = found.get("reference")
    if made is None:
        return "no reference yet", _versions_line(found["versions"]) + ".", head, rows
    where = (made["machine"]["gpu"] or {}).get("name", made["machine"]["cpu"])
    title = f"exported, on {found['machine']['cpu']}, against the reference in {made['dtype']} on {where}"
    return title, _versions_line(found["versions"]) + ".", head, rows


_NAMES = {"9b": "GLM-4-9B's shape, random weights", "small": "A small shape, random weights",
          "pocket": "The pocket model"}  # fmt: skip


def _versions_line(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
