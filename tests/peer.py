"""optimum-intel for the tests: in an environment of its own, over the one that runs them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest

import edge

_BARE = ("optimum-intel==2.2.0", "optimum==2.3.0")  # without what they ask for: torchvision, of another PyTorch


def make_python(folder: Path) -> Path:
    """An interpreter that has optimum-intel beside all that this one has."""
    if importlib.util.find_spec("optimum") and importlib.util.find_spec("optimum.intel"):
        return Path(sys.executable)
    venv.create(folder, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    here = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    Path(place, "beneath.pth").write_text("\n".join(dict.fromkeys(here)) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", *_BARE]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"optimum-intel cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return python


def run(python: Path, *words: str, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """Run it on this very package."""
    env = {**os.environ, "PYTHONPATH": str(Path(edge.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    env.pop("PYTEST_PLUGINS", None)
    return subprocess.run([str(python), *words], capture_output=True, text=True, env=env, timeout=timeout)


def export(python: Path, *words: str) -> None:
    """`glm4-edge export … --exporter optimum`, which has to go well."""
    done = run(python, "-m", "edge", "export", *words, "--exporter", "optimum")
    assert done.returncode == 0, done.stderr


def logits(folder: Path, ids: list[int]) -> np.ndarray:
    """Of a whole prompt, exactly."""
    from edge.infer import EXACT, core, infer

    compiled = core().compile_model(core().read_model(folder / "openvino_model.xml"), "CPU", EXACT)
    return infer(compiled, np.array(ids), 0)


def greedy(folder: Path, ids: list[int], count: int) -> list[int]:
    """The likeliest tokens behind a prompt, step by step, exactly."""
    from edge.infer import EXACT, core, infer

    compiled = core().compile_model(core().read_model(folder / "openvino_model.xml"), "CPU", EXACT)
    request = compiled.create_infer_request()
    new, past, found = np.array(ids), 0, []
    for _ in range(count):
        out = infer(request, new, past)
        past += len(new)
        new = np.array([out[-1].argmax()])
        found.append(int(new[0]))
    return found


GENERATE = """
import json, sys
sys.modules["torchvision"] = None
import torch
from optimum.intel import OVModelForCausalLM
from transformers import AutoTokenizer
from edge.infer import EXACT
folder, ids, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
if isinstance(ids, str):
    chat = [{"role": "user", "content": ids}]
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
model = OVModelForCausalLM.from_pretrained(folder, ov_config=EXACT)
greedily = {"do_sample": False, "repetition_penalty": 1.0}  # which the model's own defaults have another of
out = model.generate(torch.tensor([ids]), max_new_tokens=count, eos_token_id=-1, pad_token_id=0, **greedily)
print(json.dumps([type(model).__name__, ids, out[0, len(ids):].tolist()]))
"""
"""Greedy tokens by optimum-intel's runtime, behind ids or a question."""
