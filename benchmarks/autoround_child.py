"""auto-round's part of `benchmarks.autoround`, in its own interpreter: needs auto-round, nothing of ours.

    python autoround_child.py FOLDER

FOLDER/job.json names a checkpoint, token ids to calibrate with, the grid, and the matrices that stay as they are.
Written beside it are the tuned matrices as auto-round leaves them (f32, dequantised), their scales and zero points,
and what it took.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any


def main(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Quantise by the job, write `out` (safetensors), and return what is worth keeping of the run."""
    import resource  # the benchmark runs where auto-round does: Linux

    import torch
    from auto_round import AutoRound  # type: ignore[import-not-found]  # in an environment of its own
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job["checkpoint"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job["checkpoint"])
    texts = [{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
             for ids in job["texts"]]  # fmt: skip
    begin, cpu = time.perf_counter(), time.process_time()
    rounder = AutoRound(
        model, tokenizer, bits=4, group_size=job["group_size"], sym=job["symmetric"],
        layer_config={name: {"bits": 16} for name in job["left"]}, dataset=texts, nsamples=len(texts),
        seqlen=len(job["texts"][0]), batch_size=job["batch_size"], iters=job["iters"], seed=job["seed"],
        amp=False, enable_torch_compile=False, device_map=job["device"],
    )  # fmt: skip
    quantised, _ = rounder.quantize()
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    found: dict[str, Any] = {}
    modules: list[tuple[str, Any]] = list(quantised.named_modules())
    for name, module in modules:
        scale = getattr(module, "scale", None)
        if isinstance(module, torch.nn.Linear) and scale is not None and name not in job["left"]:
            found[name + ".weight"] = module.weight.data.float().contiguous()
            found[name + ".scale"] = scale.contiguous()
            if not job["symmetric"]:
                zero_point: Any = module.zp
                found[name + ".zero_point"] = zero_point.float().contiguous()
    save_file(found, out)
    packages = ("auto-round", "torch", "transformers")
    return {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "compress_seconds": round(seconds, 1),
        "compress_cpu_seconds": round(cpu, 1),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    told = main(json.loads((folder / "job.json").read_text(encoding="utf-8")), folder / "tuned.safetensors")
    (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")
