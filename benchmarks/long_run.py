"""One pipeline in a process of its own, reading long texts: the child of `benchmarks.long_context`.

    python -m benchmarks.long_run '{"folder": …, "text": …, "scheduler": {…}, "properties": {…}, "jobs": [{…}]}'

Says on standard error how far it is, and prints one line of JSON. A job reads `tokens` tokens of the text from `start`
on, then those of `then`, and writes `new` tokens greedily; `echo` asks for the log-probability of every token read.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai
import psutil

from benchmarks.watch import memory_of
from edge.runtime.memory import return_freed_memory

_TOLD_SECONDS = 5.0


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """Load, run the jobs one after the other, and say what each took."""
    if spec.get("return_freed", True):
        return_freed_memory()
    peak = _Peak()
    begin = time.perf_counter()
    config = scheduler_config(spec["scheduler"])
    pipeline = openvino_genai.ContinuousBatchingPipeline(spec["folder"], config, "CPU", spec["properties"])
    loaded = time.perf_counter() - begin
    at_load = peak.now()
    tokenizer = pipeline.get_tokenizer()
    text = Path(spec["text"]).read_text(encoding="utf-8")
    needed = max(job["start"] + job["tokens"] for job in spec["jobs"])
    # Eight characters a token are enough of any text here; the whole would take long to encode.
    ids = tokenizer.encode(text[: 8 * needed], add_special_tokens=False).input_ids.data[0].tolist()
    if len(ids) < needed:
        raise SystemExit(f"{spec['text']} has {len(ids):,} tokens, {needed:,} are needed")
    first = _run(pipeline, 0, ids[-1:], {"new": 1}, peak)  # repacks the weights
    jobs = []
    for number, job in enumerate(spec["jobs"], 1):
        prompt = ids[job["start"] : job["start"] + job["tokens"]] + job.get("then", [])
        jobs.append(_run(pipeline, number, prompt, job, peak))
    return {
        "load_seconds": round(loaded, 2),
        "first_seconds": first["seconds"],
        "anonymous_at_load": at_load,
        "anonymous_at_start": first["anonymous_after"],
        "peak_anonymous": max(job["peak_anonymous"] for job in jobs),
        "jobs": jobs,
    }


def scheduler_config(values: dict[str, Any]) -> Any:
    """GenAI's object of what `edge.runtime.plan.scheduler` gives."""
    made = openvino_genai.SchedulerConfig()
    for name, value in values.items():
        if name == "sparse_attention_config":
            mode = getattr(openvino_genai.SparseAttentionMode, value["mode"])
            value = openvino_genai.SparseAttentionConfig(**{**value, "mode": mode})
        elif name == "cache_eviction_config":
            how = getattr(openvino_genai.AggregationMode, value["aggregation_mode"])
            value = openvino_genai.CacheEvictionConfig(**{**value, "aggregation_mode": how})
        setattr(made, name, value)
    return made


def _run(pipeline: Any, number: int, prompt: list[int], job: dict[str, Any], peak: _Peak) -> dict[str, Any]:
    config = pipeline.get_config()
    config.do_sample, config.repetition_penalty, config.ignore_eos = False, 1.0, True
    config.stop_token_ids, config.eos_token_id = set(), -1
    config.max_new_tokens = job["new"]
    config.logprobs, config.echo = (1, True) if job.get("echo") else (0, False)
    peak.reset()
    begin = time.perf_counter()
    handle = pipeline.add_request(number, ov.Tensor(np.array([prompt], np.int64)), config)
    steps: list[list[float]] = []
    used, told, prefill = 0.0, begin, None
    step_tokens = job.get("step_tokens", 256)
    while pipeline.has_non_finished_requests():
        pipeline.step()
        now = time.perf_counter()
        metrics = pipeline.get_metrics()
        used = max(used, metrics.cache_usage * metrics.kv_cache_size_in_bytes / 100)
        read = min((len(steps) + 1) * step_tokens, len(prompt))
        if prefill is None:
            steps.append([read, round(now - begin, 3)])
            if read == len(prompt):
                prefill = now - begin
        if now - told > _TOLD_SECONDS:
            told = now
            doing = f"{read:,} of {len(prompt):,} tokens read" if prefill is None else "writing"
            print(f"  {now - begin:6.0f} s  {doing}", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - begin
    output = handle.read_all()[0]
    metrics, after = pipeline.get_metrics(), peak.now()
    if job.get("log_probs"):
        np.save(job["log_probs"], np.array(output.generated_log_probs[: len(prompt)], np.float32))
    return {
        "status": str(handle.get_status()).rpartition(".")[2],
        "prompt_tokens": len(prompt),
        "seconds": round(seconds, 3),
        "prefill_seconds": None if prefill is None else round(prefill, 3),
        "decode_tokens_per_second": (
            round((job["new"] - 1) / (seconds - prefill), 2) if prefill is not None and job["new"] > 1 else None
        ),
        "steps": steps[:: max(1, len(steps) // 64)] + steps[-1:],
        "kv_pool_bytes": metrics.kv_cache_size_in_bytes,
        "kv_used_bytes": int(used),
        "kv_used_at_end_bytes": int(metrics.cache_usage * metrics.kv_cache_size_in_bytes / 100),
        "peak_anonymous": max(peak.most, after),
        "anonymous_after": after,
        "new_tokens": [int(token) for token in output.generated_ids[-job["new"] :]],
    }


class _Peak:
    """Anonymous memory of this process, watched from a thread of it.

    GenAI lets no other thread run during a step; but what a step took it still has at its end.
    """

    def __init__(self) -> None:
        self.most = 0
        self._process = psutil.Process()
        threading.Thread(target=self._watch, daemon=True).start()

    def now(self) -> int:
        return memory_of(self._process)[0]

    def reset(self) -> None:
        self.most = self.now()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, self.now())
            time.sleep(0.01)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))), flush=True)
