"""The README's table of measured numbers is what the result files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from benchmarks import readme

MACHINE = {"cpu": "Intel(R) Core(TM) Ultra 7 CPU @ 1.40GHz", "cores": 16, "memory_bytes": 16_000_000_000}


def test_the_readme_says_what_the_results_say() -> None:
    text = (readme.ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.put(text, readme.table(readme.RESULTS)) == text, "run python -m benchmarks.readme"


def write(folder: Path, name: str, what: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(what), encoding="utf-8")


def peers() -> dict[str, Any]:
    def row(kl: float, top1: float, perplexity: float) -> dict[str, Any]:
        return {"as_run": {"kl_mean": kl, "top1_agreement": top1, "perplexity": perplexity}}

    def figures(first: float, prefill: float, decode: float) -> dict[str, float]:
        return {"first_token_seconds": first, "prefill_rate": prefill, "decode_rate": decode}

    return {
        "quality": {
            "machine": MACHINE, "text": "wiki.test.raw", "tokens": 4096, "window": 512,
            "model_bytes": {"glm4-edge": 105_400_000, "llama.cpp Q4_0": 91_600_000, "ITREX": 105_400_000},
            "rows": {
                "bf16": row(0, 1, 30.36), "glm4-edge": row(0.0549, 0.867, 32.08),
                "llama.cpp Q4_0": row(0.3, 0.7, 37), "ITREX": row(0.0549, 0.867, 32.08),
            },
        },
        "speed": {
            "machine": MACHINE, "settings": {"prompt_tokens": 1024},
            "figures": {"glm4-edge": figures(2.34, 1524, 92.6), "llama.cpp Q4_0": figures(5.1, 310.4, 9.87),
                        "ITREX": figures(30, 90, 12)},
            "ours_to_peer": {"llama.cpp Q4_0": {"TTFT": {"verdict": "faster"}, "TPOT": {"verdict": "no difference"}}},
        },
    }  # fmt: skip


def test_every_line_has_its_figures_and_its_machine(tmp_path: Path) -> None:
    write(tmp_path, "peers_pocket", peers())
    lines = readme.table(tmp_path).splitlines()
    on = "| Intel Core Ultra 7, 16 cores |"
    assert lines[2:7] == [
        f"| the pocket model in int4, on disk | 105 MB | llama.cpp Q4_0 92 MB {on}",
        f"| its perplexity on WikiText-2 (4,096 tokens in windows of 512) | 32.1 | bf16 30.4; llama.cpp Q4_0 37.0 {on}",
        "| its KL divergence to bf16 in nats, and how often both like the same token best | 0.055, 87% "
        f"| llama.cpp Q4_0 0.300, 70% {on}",
        f"| the pocket model, 1,024 tokens in: process start to first token | 2.3 s | llama.cpp Q4_0 5.1 s {on}",
        f"| the pocket model, 1,024 tokens in: prefill, decode | 1,524 and 93 tokens/s | llama.cpp Q4_0 310 and 9.9 "
        f"tokens/s (decode: no difference) {on}",
    ]
    assert lines[7] == "" and not any("ITREX" in line for line in lines)  # it is in the peers' own table


def test_of_few_rounds_no_verdict_is_said(tmp_path: Path) -> None:
    measured = peers()
    measured["speed"]["settings"]["rounds"] = 4
    measured["speed"]["ours_to_peer"]["llama.cpp Q4_0"]["TPOT"]["pairs"] = 4
    write(tmp_path, "peers_pocket", measured)
    assert "1,024 tokens in, medians of 4 rounds: prefill, decode | 1,524" in readme.table(tmp_path)
    assert "no difference" not in readme.table(tmp_path)


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    measured = peers()
    del measured["speed"]
    write(tmp_path, "peers_pocket", measured)
    assert "prefill" not in readme.table(tmp_path)
    speeds = {"prefill_tokens_per_second": 1000.4, "decode_tokens_per_second": 80.0}
    answers = [{"wall_seconds": seconds} for seconds in (2.1, 2.4, 9.0)]
    write(tmp_path, "pocket", {"machine": MACHINE, "first_answer": answers, "speeds": {"as chat runs it": speeds}})
    made = readme.table(tmp_path)
    assert "whole first answer, once exported | 2.4 s |" in made and "prefill, decode | 1,000 and 80 tokens/s |" in made


def test_an_export_beside_another_and_a_reference(tmp_path: Path) -> None:
    run = {"wall_seconds": 87.43, "peak_anonymous_bytes": 1_089_863_680, "temporary_disk_bytes": 3_801_088}
    peer = {"wall_seconds": 375.5, "peak_anonymous_bytes": 11_776_364_544, "temporary_disk_bytes": 18_802_581_504}
    write(
        tmp_path,
        "export_9b",
        {"machine": MACHINE, "settings": {"cold": True, "repeats": 1}, "medians": {"ours": run, "optimum-intel": peer}},
    )
    roads = {"layer, triton, matmul": 160.62, "transformers eager": 21.91, "layer, other": 173.0}
    told = {name: {"decode_tokens_per_s": rate} for name, rate in roads.items()}
    write(tmp_path, "reference_cuda", {"gpu": {"9b": {"gpu": {"name": "NVIDIA H200"}, "roads": told}}})
    made = readme.table(tmp_path)
    assert "cold disk, one run | 87 s, 1.1 GB of memory, the proof included, no PyTorch | " in made
    assert "| optimum-intel 376 s, 11.8 GB of memory, 18.8 GB of temporary disk, no proof |" in made
    assert "decode | 161 tokens/s | transformers eager 22 tokens/s | one NVIDIA H200 |" in made


@pytest.mark.parametrize("text", ["", readme.BEGIN, readme.END, f"{readme.BEGIN}{readme.END}{readme.BEGIN}"])
def test_without_its_marks_nothing_is_written(text: str) -> None:
    with pytest.raises(click.ClickException, match="needs one line"):
        readme.put(text, "x")


def test_what_stands_around_stays() -> None:
    text = "a\n{}\n{}{}\nb\n"
    old, new = (text.format(readme.BEGIN, stands, readme.END) for stands in ("old\n", "new\n"))
    assert readme.put(old, "new\n") == new
