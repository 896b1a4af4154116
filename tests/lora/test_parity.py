"""Adapters on exported models against PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.golden import known_log_probs
from edge.infer import EXACT
from edge.lora.asked import Asked, Loras
from edge.messages import Sampling, Tokens
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
    assert Manifest.read(out).source.merged == ["fused at 0.7", "one"]


def test_an_awq_export_divides_what_it_multiplies(made: dict[str, Path], tmp_path: Path) -> None:
    """Data-free AWQ puts factors before the down projection; an adapter there is held against the IR's own bits."""
    from edge.export import golden
    from edge.lora.adapter import Adapter
    from edge.lora.fitted import places
    from edge.model import forward

    checkpoint = write_checkpoint(tmp_path / "glm", vocab_size=320, hidden_size=64, intermediate_size=128,
                                  num_attention_heads=8)  # fmt: skip
    spec = GlmSpec.from_folder(checkpoint)
    out = exported(checkpoint, tmp_path / "out", "--no-calibrate", "--group-size", "32", "--ratio", "1")
    asked = Asked(write_adapter(tmp_path / "down", spec, modules=["mlp.down_proj"], size=2))
    targets = list(Adapter.read(asked, spec).deltas)
    assert all(place.factors is not None for place in places(out, spec, targets).values())
    restored = golden._restored(out / "openvino_model.xml", spec)

    class Added:
        def __init__(self, name: str) -> None:
            self.plain, self.delta = restored(name), Adapter.read(asked, spec).deltas[name.removesuffix(".weight")]

        def times(self, x: np.ndarray) -> np.ndarray:
            return self.plain.times(x) + x @ self.delta.a.T @ self.delta.b.T

    reference = forward.logits(spec, lambda name: Added(name) if "down_proj" in name else restored(name), TOKENS)  # type: ignore[arg-type,return-value]
    with Engine.load(out, F32, Loras((asked,), per_request=True)) as engine:
        base = log_probs(engine)
        assert error(log_probs(engine, "down"), reference) < CLOSE
        assert np.abs(known(reference) - base).max() > 100 * CLOSE


class TestPrefixCache:
    """GenAI finds a prompt's beginning again by its tokens, whichever adapter had read it."""

    def test_requests_with_different_adapters_share_nothing(self, made: dict[str, Path]) -> None:
        loras = Loras((Asked(made["one"]), Asked(made["fused"])), per_request=True)
        greedy = Sampling(temperature=0, max_new_tokens=12)

        def answer(engine: Engine, *adapters: str) -> list[int]:
            sampling = Sampling(**{**vars(greedy), "adapters": adapters})
            return [token for chunk in engine.stream(Tokens(tuple(TOKENS)), sampling) for token in chunk.token_ids]

        alone = {}
        for name in ("", "one", "fused"):
            with Engine.load(made["exported"], F32, loras) as engine:
                alone[name] = answer(engine, *filter(None, [name]))
        assert len(set(map(tuple, alone.values()))) == 3
        with Engine.load(made["exported"], F32, loras) as engine:
            for name in ("", "one", "fused", "one", "", "fused", ""):
                assert answer(engine, *filter(None, [name])) == alone[name], name

    def test_checks_leave_nothing_that_an_answer_finds(self, made: dict[str, Path]) -> None:
        """A conversation whose adapters are always on keeps its prefix cache, though the checks are made without."""
        from edge import golden as goldens

        loras = Loras((Asked(made["one"]),))
        golden = goldens.read(made["exported"])
        assert golden is not None
        checked = golden.beyond(32)
        assert checked is not None and min(checked.lengths) == 33
        prompt = [*golden.token_ids[:9].tolist(), *TOKENS]  # begins like the text of the check
        with Engine.load(made["exported"], F32, loras) as engine:
            expected = log_probs(engine, "one", tokens=prompt)
        with Engine.load(made["exported"], F32, loras) as engine:
            engine.warm_up()
            for length in checked.lengths:
                engine.probe(checked.prompt(length).tolist())
            assert (log_probs(engine, "one", tokens=prompt) == expected).all()
            sampling = Sampling(temperature=0, max_new_tokens=4)
            for cached in (0, 64):
                *_, last = engine.stream(Tokens(tuple(TOKENS)), sampling)
                assert last.usage is not None and (last.usage.cached_tokens or 0) >= cached

    def test_what_was_not_loaded_is_refused(self, made: dict[str, Path]) -> None:
        from edge.errors import UsageError

        with Engine.load(made["exported"], F32, Loras((Asked(made["one"]), Asked(made["two"])))) as engine:
            assert engine.adapters == () and engine.always_on == ("one", "two")
            for adapters in ((), ("one",), ("three",)):
                with pytest.raises(UsageError, match="was not loaded with"):
                    next(engine.stream(Tokens(tuple(TOKENS)), Sampling(adapters=adapters)))


def test_one_by_one_pipelines_take_them_too(made: dict[str, Path]) -> None:
    """The plain pipeline, which HETERO has; here by the attention backend. It gives tokens, no log-probabilities."""
    settings = Settings("CPU", {**EXACT, "ATTENTION_BACKEND": "SDPA"})
    loras = Loras((Asked(made["one"]), Asked(made["fused"])), per_request=True)
    with Engine.load(made["exported"], settings, loras) as engine:
        for name in ("one", "", "fused", "", "one"):
            reference = expected(made["glm"], TOKENS, *([(made[name], 1.0)] if name else []))
            sampling = Sampling(
                temperature=0, max_new_tokens=1, repetition_penalty=1.0, adapters=tuple(filter(None, [name]))
            )
            chunks = list(engine.stream(Tokens(tuple(TOKENS)), sampling))
            assert [token for chunk in chunks for token in chunk.token_ids] == [int(reference[-1].argmax())], name


def test_a_merged_graph_gives_pytorchs_logits(made: dict[str, Path]) -> None:
    """Before any rounding, and the whole vocabulary."""
    from edge.export.graph import build_model
    from edge.infer import core, infer
    from edge.lora.adapter import Adapter
    from edge.lora.merged import Merged

    spec = GlmSpec.from_folder(made["glm"])
    asked = (Asked(made["fused"], 0.7), Asked(made["one"]))
    merged = Merged(made["glm"], [Adapter.read(each, spec) for each in asked])
    compiled: Any = core().compile_model(build_model(spec, merged.weight), "CPU", EXACT)
    reference = expected(made["glm"], TOKENS, (made["fused"], 0.7), (made["one"], 1.0))
    assert np.abs(infer(compiled, np.array(TOKENS), 0) - reference).max() < CLOSE
    bf16 = Merged(made["glm"], merged.adapters, as_bf16=True).weight("model.layers.0.mlp.down_proj.weight")
    exact = merged.weight("model.layers.0.mlp.down_proj.weight").f32()
    assert bf16.dtype == "BF16" and np.abs(bf16.f32() - exact).max() <= 2.0**-8 * np.abs(exact).max()
