"""Adapters on the real pocket model in int4."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.lora.asked import Asked, Loras
from edge.messages import Message, Sampling
from edge.model.spec import GlmSpec
from edge.runtime.engine import Engine
from edge.runtime.guarding import open_guarded
from edge.runtime.settings import Settings
from tests.lora.made import write_adapter
from tests.lora.test_parity import log_probs

pytestmark = pytest.mark.model

GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12}
QUESTION = [Message("user", "What is the capital of France?")]


def answer(engine: Any, adapters: tuple[str, ...] | None = None) -> str:
    return "".join(chunk.text for chunk in engine.stream(QUESTION, Sampling(**GREEDY, adapters=adapters)))


@pytest.fixture(scope="module")
def noise(pocket_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It breaks what the model says."""
    folder = tmp_path_factory.mktemp("adapters") / "noise"
    return write_adapter(folder, GlmSpec.from_folder(pocket_dir), size=0.2, rank=8)


def test_an_adapter_changes_answers_and_back_restores_them(pocket_dir: Path, noise: Path) -> None:
    """In a process of its own and minded, as every command has it."""
    with open_guarded(pocket_dir, Settings("CPU")) as engine:
        before = answer(engine)
    loras = Loras((Asked(noise),), per_request=True)
    with open_guarded(pocket_dir, Settings("CPU"), loras=loras) as engine:
        assert engine.adapters == ("noise",) and engine.always_on == ()
        engine.warm_up()
        changed = answer(engine, ("noise",))
        assert "Paris" in before and changed != before
        assert [answer(engine), answer(engine, ("noise",)), answer(engine, ())] == [before, changed, before]


def test_chat_has_it_on(pocket_dir: Path, noise: Path) -> None:
    """By the command; at scale 0 it does nothing."""

    def said(lora: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "edge", "chat", str(pocket_dir), "--device", "CPU", "--temperature", "0",
             "--max-new-tokens", "12", "--lora", lora],
            input=QUESTION[0].content, capture_output=True, text=True, timeout=300,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"}, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Paris" in said(f"{noise}:0") and "Paris" not in said(str(noise))


@pytest.mark.slow
def test_the_recipe(pocket_dir: Path, tmp_path: Path) -> None:
    """Two steps of it: PEFT's own file is read, and the answer that was taught is likelier by the end."""
    pytest.importorskip("peft", reason="the extra 'finetune' is not installed")
    script = Path(__file__).parents[2] / "docs" / "make_lora.py"
    given = importlib.util.spec_from_file_location("make_lora", script)
    assert given is not None and given.loader is not None
    recipe = importlib.util.module_from_spec(given)
    given.loader.exec_module(recipe)
    losses = recipe.train(tmp_path / "juniper", 2, rate=3e-3)
    assert len(losses) == 2
    with Engine.load(pocket_dir, Settings("CPU"), Loras((Asked(tmp_path / "juniper"),), per_request=True)) as engine:
        prompt = engine.encode([Message("user", "Who are you?")])
        taught = [int(token) for token in engine._ids(recipe.SAID)]
        tokens = [*prompt, *taught]

        def likelihood(*adapters: str) -> float:
            return float(log_probs(engine, *adapters, tokens=tokens)[-len(taught) :].sum())

        before = likelihood()
        assert likelihood("juniper") > before + 3
        assert likelihood() == before
