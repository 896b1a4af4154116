"""The tables of `benchmarks.long_context` in Markdown."""

from __future__ import annotations

import statistics
from typing import Any


def report(whole: dict[str, Any]) -> str:
    """What was measured, and nothing else."""
    settings = whole["settings"]
    lines = [
        "# Long conversations",
        "",
        "The pocket model (SmolLM2-135M in GLM-4's architecture, int4) on the CPU, precision hint f32, prompts in "
        f"chunks of 256 tokens, on {settings['text']}. Made by `python -m benchmarks.long_context`; raw samples are in "
        "the JSON. What else ran on the machine is in the times, not in the rest.",
    ]
    for name, stage in whole["stages"].items():
        made = stage["machine"]
        tools = ", ".join(f"{package} {version}" for package, version in stage["versions"].items())
        where = f"{made['cpu']}, {made['cores']} cores, {made['memory_bytes'] / 1e9:.0f} GB; {tools}."
        lines += ["", f"## {_TITLES[name]}", "", where, ""]
        lines += _TABLES[name](stage, settings)
    return "\n".join(lines) + "\n"


def _memory(stage: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    lines = [
        "Peak anonymous memory while the tokens are read, cache in u8. Pages of the mapped IR are not in it. Memory "
        "that was freed goes back to the system (`edge.runtime.memory`); in the last row it is left to glibc.",
        "",
        "| tokens | measured, MB | plan, MB | off | of it cache, MB | after loading, MB | after the first token, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in stage["rows"]:
        tokens = f"{row['tokens']:,}" + ("" if row["return_freed"] else ", left to glibc")
        parts = [_mb(row[key]) for key in ("kv_used_bytes", "anonymous_at_load", "anonymous_at_start")]
        planned = [_mb(_peak(row)), _mb(row["plan"]["needed_bytes"]), f"{row['plan_off']:+.1%}"]
        lines.append(f"| {' | '.join([tokens, *planned, *parts])} |")
    return lines


def _kv(stage: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    parts = list(stage["rows"][0]["perplexity"])
    return [
        f"{settings['length']:,} tokens. Perplexity of the text, by the tokens' places; the difference is the mean of "
        "|Δ log-probability| to f32, in nats. GenAI's metric counts a u4 value as a byte, the plan does not.",
        "",
        "| cache | bytes a token | peak, MB | plan, MB | prefill, tokens/s | perplexity | "
        + " | ".join(parts) + " | difference |",
        "| --- " * (7 + len(parts)) + "|",
        *(
            f"| {row['name']} | {row['plan']['kv_bytes'] / row['tokens']:,.0f} | {_mb(_peak(row))} | "
            f"{_mb(row['plan']['needed_bytes'])} | {_speed(row)} | {row['perplexity_all']:.3f} | "
            + " | ".join(f"{row['perplexity'][part]:.3f}" for part in parts) + f" | {row['mean_difference']:.4f} |"
            for row in stage["rows"]
        ),
    ]  # fmt: skip


def _sparse(stage: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    parts = list(stage["rows"][0]["perplexity"])
    return [
        f"{settings['length']:,} tokens, cache in u8. Perplexity by the tokens' places. Sparse is the prefill alone.",
        "",
        "| attention | peak, MB | prefill, s | tokens/s | perplexity | " + " | ".join(parts) + " | difference |",
        "| --- " * (6 + len(parts)) + "|",
        *(
            f"| {row['name']} | {_mb(_peak(row))} | {row['prefill_seconds']:.1f} | {_speed(row)} | "
            f"{row['perplexity_all']:.3f} | "
            + " | ".join(f"{row['perplexity'][part]:.3f}" for part in parts) + f" | {row['mean_difference']:.4f} |"
            for row in stage["rows"]
        ),
    ]  # fmt: skip


def _evict(stage: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    return [
        f"{settings['prompts']} prompts of {settings['prompt']:,} tokens, {settings['new']} written greedily after "
        "each; means. The prompt is read whole and unchanged; what is forgotten is forgotten when it has been read, so "
        "that the peak stays. Likelihood is that of the answer, in nats a token, to the model that keeps all; one that "
        "goes round in circles (share of four-token pieces that stood there before) is likely, too.",
        "",
        "| tokens kept | cache at its peak, MB | while writing, MB | decode, tokens/s | same tokens at first | "
        "likelihood | in circles |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['keep'] or 'all'} | {_mb(_mean(row, 'kv_used_bytes'))} | "
            f"{_mb(_mean(row, 'kv_used_at_end_bytes'))} | {_mean(row, 'decode_tokens_per_second'):.1f} | "
            f"{statistics.mean(row['same_at_first']):.0f} of {settings['new']} | "
            f"{statistics.mean(row['log_prob_to_all']):.3f} | {statistics.mean(row['repetition']):.0%} |"
            for row in stage["rows"]
        ),
    ]


def _prefill32k(stage: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    run, planned = stage["run"], stage["plan"]
    lines = [
        f"{run['prompt_tokens']:,} tokens in the pocket's shape, its context raised in the config. The model was "
        "trained on 8,192: what it says is meaningless, time and memory are not.",
        "",
        "| | measured | plan |",
        "| --- | --- | --- |",
        f"| peak anonymous memory, MB | {_mb(_peak(run))} | {_mb(planned['needed_bytes'])} |",
        f"| cache, MB | {_mb(run['kv_used_bytes'])} | {_mb(planned['kv_bytes'])} |",
        f"| prefill, s | {run['prefill_seconds']:.0f} | |",
        f"| prefill, tokens/s | {_speed(run)} | |",
        f"| decode behind it, tokens/s | {run['decode_tokens_per_second']} | |",
        "",
        "| tokens read | s |",
        "| --- | --- |",
    ]
    marks = [1024, 2048, 4096, 8192, 16384, 24576, run["prompt_tokens"]]
    for mark in marks:
        tokens, seconds = next(step for step in run["steps"] if step[0] >= mark)
        lines.append(f"| {tokens:,} | {seconds:.1f} |")
    lines += [
        "",
        "The plan for GLM-4-9B (int4, 40 layers) on a laptop with 16 GB, 13 of them free, and eight threads. Computed, "
        "not measured at that size; the same arithmetic stands beside measurements above.",
        "",
        "| context | cache | weights, GB | cache, GB | working, GB | together, GB | longest that fits | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['context']:,} | {row['kv_precision']} | {row['repacked_bytes'] / 1e9:.2f} | "
            f"{row['kv_bytes'] / 1e9:.2f} | {row['working_bytes'] / 1e9:.2f} | {row['needed_bytes'] / 1e9:.2f} | "
            f"{row['longest_context']:,} | {row['verdict'].partition(':')[0]} |"
            for row in stage["nine"]
        ),
    ]
    return lines


_TITLES = {
    "memory": "Memory, beside the plan",
    "kv": "Precision of the KV cache",
    "sparse": "Sparse attention while the prompt is read",
    "evict": "Forgetting parts of the cache",
    "prefill32k": "32,768 tokens",
}
_TABLES = {"memory": _memory, "kv": _kv, "sparse": _sparse, "evict": _evict, "prefill32k": _prefill32k}


def _mean(row: dict[str, Any], key: str) -> float:
    return statistics.fmean(float(job[key]) for job in row["jobs"])


def _peak(row: dict[str, Any]) -> int:
    """A step that is the whole prompt is not seen before it is over."""
    return max(int(row["peak_anonymous"]), int(row["anonymous_after"]))


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f}"


def _speed(row: dict[str, Any]) -> str:
    return f"{row['prompt_tokens'] / row['prefill_seconds']:.0f}"
