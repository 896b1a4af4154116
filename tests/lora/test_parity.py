"""Adapters on exported models against PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.golden import known_log_probs
from edge.infer import EXACT
from edge.lora.asked import Asked, Loras
from edge.messages import Sampling
from edge.model.spec import GlmSpec
from edge.runtime.engine import Engine
from edge.runtime.prefix import Reading
from edge.runtime.settings import Settings
from tests.conftest import write_chatglm, write_checkpoint
from tests.lora.made import CHATGLM, write_adapter
from tests.lora.made import torch_logits as expected

TOKENS = [int(each) for each in np.random.default_rng(5).integers(3, 300, 70)]
F32 = Settings("CPU", EXACT)
CLOSE = 1e-3


def exported(checkpoint: Path, out: Path, *options: str) -> Path:
    from edge.cli import _run

    assert _run(["export", str(checkpoint), str(out), *options]) == 0
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model in bf16, and adapters of both layouts."""
    folder = tmp_path_factory.mktemp("lora")
    glm = write_checkpoint(folder / "glm", vocab_size=320)
    spec = GlmSpec.from_folder(glm)
    return {
        "glm": glm,
        "exported": exported(glm, folder / "out", "--weights", "bf16"),
        "one": write_adapter(folder / "one", spec, seed=1),
        "two": write_adapter(folder / "two", spec, seed=2, rank=7, alpha=3, modules=["self_attn.q_proj"]),
        "fused": write_adapter(folder / "fused", spec, seed=3, modules=list(CHATGLM), use_rslora=True),
    }


def log_probs(engine: Engine, *adapters: str, tokens: list[int] = TOKENS) -> np.ndarray:
    """Of each token but the first, through the pipeline that answers."""
    config = engine._config(Sampling(temperature=0, repetition_penalty=1.0), 1)
    config.echo, config.logprobs = True, 1
    reading = Reading(len(tokens))
    found = engine._generate(tokens, config, lambda ids, log_probs=(): True, reading, adapters)[1]
    return np.array(found[1:-1])


def known(logits: np.ndarray, tokens: list[int] = TOKENS) -> np.ndarray:
    return known_log_probs(logits[:-1], np.array(tokens[1:]))


def error(found: np.ndarray, logits: np.ndarray) -> float:
    return float(np.abs(found - known(logits)).max())


def test_one_adapter_for_each_answer(made: dict[str, Path]) -> None:
    """Each is what PyTorch makes of it, in either layout; and without, the very numbers from before come back."""
    asked = tuple(Asked(made[name]) for name in ("one", "two", "fused"))
    with Engine.load(made["exported"], F32, Loras(asked, per_request=True)) as engine:
        assert engine.adapters == ("one", "two", "fused")
        base = log_probs(engine)
        assert error(base, expected(made["glm"], TOKENS)) < CLOSE
        for name in ("one", "two", "fused", "one"):
            reference = expected(made["glm"], TOKENS, (made[name], 1.0))
            assert error(log_probs(engine, name), reference) < CLOSE, name
            assert np.abs(known(reference) - base).max() > 100 * CLOSE, "the adapter is too weak to prove anything"
            assert (log_probs(engine) == base).all()
    with Engine.load(made["exported"], F32) as engine:
        assert (log_probs(engine) == base).all(), "a model that has adapters, none of them on, is the model without"


def test_several_with_scales_at_once(made: dict[str, Path]) -> None:
    asked = (Asked(made["one"], 0.5), Asked(made["two"], -1.5), Asked(made["fused"]))
    reference = expected(made["glm"], TOKENS, (made["one"], 0.5), (made["two"], -1.5), (made["fused"], 1.0))
    with Engine.load(made["exported"], F32, Loras(asked)) as engine:
        assert error(log_probs(engine, "one", "two", "fused"), reference) < CLOSE


@pytest.mark.parametrize("layout", ["glm", "chatglm"])
def test_a_merged_export_is_the_same(made: dict[str, Path], layout: str, tmp_path: Path) -> None:
    """Full logits; and it says of itself what was merged."""
    import openvino as ov

    from edge.infer import core, infer
    from edge.manifest import MODEL_FILE, Manifest

    checkpoint = made["glm"] if layout == "glm" else write_chatglm(tmp_path / "chatglm", made["glm"])
    out = exported(checkpoint, tmp_path / "out", "--weights", "fp16", "--merge-lora", f"{made['fused']}:0.7",
                   "--merge-lora", str(made["one"]))  # fmt: skip
    reference = expected(made["glm"], TOKENS, (made["fused"], 0.7), (made["one"], 1.0))
    compiled: Any = core().compile_model(core().read_model(out / MODEL_FILE), "CPU", EXACT)
    found = infer(compiled, np.array(TOKENS), 0)
    assert isinstance(compiled, ov.CompiledModel)
    assert np.abs(found - reference).max() < 5e-3 * np.abs(reference).max()  # fp16 weights
    told = Manifest.read(out).source.sha256
    assert {"lora: fused at 0.7", "lora: one"} <= set(told)
