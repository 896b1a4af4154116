"""A model run by ITREX: the numbers that are handed over, the protocol, and, where it is set up, the real thing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edge.cli import _run
from edge.errors import DeviceError, ModelError, UsageError
from edge.infer import EXACT
from edge.manifest import Manifest
from edge.messages import Message, Sampling, Tokens
from edge.model import forward
from edge.model.spec import GlmSpec
from edge.runtime import itrex, itrex_home, itrex_weights
from edge.runtime.engine import Engine
from edge.runtime.settings import Settings
from tests import peer
from tests.conftest import write_checkpoint

FITS = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_attention_heads": 4}
RECIPES = {
    "int4 asym": ("--group-size", "32", "--asym", "--no-calibrate", "--ratio", "1"),
    "int4 sym": ("--for", "npu"),
    "int8": ("--weights", "int8"),
    "bf16": ("--weights", "bf16"),
}
IDS = [1, 5, 9, 33, 7, 120, 64, 3, 90, 17, 201, 44, 300, 12]
ITREX = Settings("CPU", runtime="itrex")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model exported by a recipe of `RECIPES`, once."""
    folder = tmp_path_factory.mktemp("itrex")
    checkpoint = write_checkpoint(folder / "checkpoint", **FITS)

    def export(recipe: str) -> Path:
        out = folder / recipe.replace(" ", "-")
        if not out.exists():
            assert _run(["export", str(checkpoint), str(out), *RECIPES[recipe]]) == 0
        return out

    return export


class Given:
    """A tensor of the definition's: numbers as they were handed over."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def f32(self) -> np.ndarray:
        return self.values

    def rows(self, index: np.ndarray) -> Given:
        return Given(self.values[index])

    def times(self, x: np.ndarray) -> np.ndarray:
        return x @ self.values.T


def numbers(folder: Path) -> dict[str, Given]:
    """What the parts say, as a reader of `Part` has to take them."""
    config = itrex_weights.config(folder, Manifest.read(folder))
    found = {}
    for part in itrex_weights.parts(folder, config):
        for name, form in part.matrices.items():
            values = part.tensors[name].astype(np.float32)
            assert part.tensors[name].dtype == np.int8 and np.abs(values).max() <= 2 ** (form["bits"] - 1)
            groups = values.reshape(len(values), -1, form["group_size"])
            if "zero_point" in form["parts"]:
                groups = groups - part.tensors[f"{name}.zero_point"].astype(np.float32)[..., None]
            values = (groups * part.tensors[f"{name}.scale"][..., None]).reshape(values.shape)
            found[name] = Given(values * part.tensors.get(f"{name}.factors", np.float32(1)))
        parts = (".scale", ".zero_point", ".factors")
        found |= {
            name: Given(values)
            for name, values in part.tensors.items()
            if name not in part.matrices and not name.endswith(parts)
        }
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_handed_over_is_the_model(recipe: str, exported: Callable[[str], Path]) -> None:
    """By the definition, in numpy, it says what the compiled IR says: grid, order of rows, AWQ's factors, biases."""
    folder = exported(recipe)
    given = numbers(folder)
    spec = GlmSpec.from_folder(folder)
    assert set(given) == set(spec.tensor_shapes())
    logits = forward.logits(spec, given.__getitem__, IDS)
    expected = peer.logits(folder, IDS)
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def changed(folder: Path, **config: Any) -> tuple[Path, Manifest]:
    import json

    given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**given, **config}), encoding="utf-8")
    return folder, Manifest.read(folder)


def test_the_rope_base_is_written_as_the_old_transformers_reads_it(
    exported: Callable[[str], Path], tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(exported("int8"), tmp_path / "model"))
    rope = {"rope_type": "default", "rope_theta": 5000000.0, "partial_rotary_factor": 0.25}
    config = itrex_weights.config(*changed(folder, rope_parameters=rope))
    assert (config["rope_theta"], config["partial_rotary_factor"]) == (5000000.0, 0.25)
    config = itrex_weights.config(*changed(folder, rope_parameters=None, rope_theta=1e8))
    assert (config["rope_theta"], config["partial_rotary_factor"]) == (1e8, 0.5)
    with pytest.raises(ModelError, match="yarn"):
        itrex_weights.config(*changed(folder, rope_scaling={"type": "yarn", "factor": 4.0}))
    with pytest.raises(ModelError, match="glm4"):
        itrex_weights.config(*changed(folder, model_type="glm4"))
    traced = Manifest.read(folder).model_copy(update={"exporter": "optimum"})
    with pytest.raises(ModelError, match="optimum"):
        itrex_weights.config(folder, traced)


def fake(monkeypatch: pytest.MonkeyPatch, *wrong: str) -> None:
    script = Path(__file__).with_name("fake_itrex.py")
    monkeypatch.setattr(itrex, "command", lambda: [sys.executable, str(script), *wrong])


def pid(engine: Engine) -> int:
    return engine._backend._worker._process.pid  # type: ignore[union-attr]


@pytest.fixture
def engine(exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    fake(monkeypatch)
    with Engine.load(exported("int8"), ITREX) as engine:
        yield engine


@pytest.mark.parametrize(("given", "told"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_idle_threads_sleep_unless_it_is_said(given: str | None, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    script = "import json, os, sys; print(json.dumps({'id': 0, 'ok': dict(os.environ)}), flush=True); sys.stdin.read()"
    worker = itrex.Worker([sys.executable, "-c", script])
    try:
        assert worker.versions["OMP_WAIT_POLICY"] == told and worker.versions["HF_HUB_OFFLINE"] == "1"
    finally:
        worker.close()


def test_tokens_come_as_chunks(engine: Engine) -> None:
    chunks = list(engine.stream(Tokens((1, 40)), Sampling(temperature=0, max_new_tokens=5)))
    assert [token for chunk in chunks for token in chunk.token_ids] == [41, 42, 43, 44, 45]
    assert chunks[-1].usage is not None and chunks[-1].usage.finish_reason == "length"
    assert engine.together == 1 and engine.count_tokens([Message("user", "abc")]) > 3


def test_log_probs_are_told_where_asked(engine: Engine) -> None:
    sampling = Sampling(temperature=0, max_new_tokens=3, log_probs=True)
    said = [each for chunk in engine.stream(Tokens((1, 40)), sampling) for each in chunk.log_probs]
    assert said == [-0.5, -0.5, -0.5]
    probe = engine.probe([5, 6, 7])
    assert probe.token == 8 and probe.log_probs == (-1.0, -1.0)


def test_a_stop_token_ends_the_answer(engine: Engine) -> None:
    stop = min(engine.manifest.stop_ids)
    chunks = list(engine.stream(Tokens((stop - 1,)), Sampling(temperature=0, max_new_tokens=9)))
    assert chunks[-1].usage is not None and chunks[-1].usage.stop_id == stop


def test_no_grammar(engine: Engine) -> None:
    from edge.grammar import Literally

    with pytest.raises(UsageError, match="grammar"):
        list(engine.stream(Tokens((1, 40)), Sampling(grammar=Literally("yes"))))
    assert list(engine.stream(Tokens((1, 40)), Sampling(temperature=0, max_new_tokens=1)))


def test_closing_ends_the_process_and_leaves_nothing(
    exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch)
    engine = Engine.load(exported("int8"), ITREX)
    process, scratch = pid(engine), engine._backend._worker.folder  # type: ignore[union-attr]
    assert [path.name for path in scratch.iterdir()] == ["log"]  # weights that were read are gone
    engine.close()
    assert not psutil.pid_exists(process) and not scratch.exists()


def test_an_answer_is_cancelled_while_the_prompt_is_read(
    exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, "slow")
    with Engine.load(exported("int8"), ITREX) as engine:
        cancelled = threading.Event()
        threading.Timer(0.3, cancelled.set).start()
        begin = time.monotonic()
        chunks = list(engine.stream(Tokens((1, 40)), Sampling(max_new_tokens=5), cancelled))
        assert chunks[-1].usage is not None and chunks[-1].usage.finish_reason == "cancelled"
        assert time.monotonic() - begin < 10
    assert time.monotonic() - begin < 20  # the worker heard of it, or closing would have had to wait


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("no start", "undefined symbol"),
        ("add", "no add today"),
        ("die in ready", "Killed"),
        ("die in begin", "exit code 9"),
    ],
)
def test_a_worker_that_fails_while_loading(
    wrong: str, said: str, exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, wrong)
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(DeviceError, match=said):
        Engine.load(exported("int8"), ITREX)
    assert {child.pid for child in psutil.Process().children()} <= before


def test_who_breaks_off_keeps_nobody_waiting() -> None:
    """An answer whose asker fails is not computed to its end."""
    worker = itrex.Worker([sys.executable, str(Path(__file__).with_name("fake_itrex.py")), "slow"])
    asked = {"ids": [1], "max_new_tokens": 10**6, "echo": False, "stop": [], "sampling": {}}

    def breaks() -> bool:
        raise RuntimeError("the asker's own")

    try:
        worker.ask("begin", config={"vocab_size": 9})
        with pytest.raises(RuntimeError, match="the asker's own"):
            worker.ask("generate", look=breaks, **asked)
        begin = time.monotonic()

        def patient() -> bool:
            assert time.monotonic() - begin < 20, "the worker is still at what nobody wants"
            return True

        assert worker.ask("ready", look=patient) == 0
    finally:
        worker.close()


def test_a_worker_that_dies_while_answering(exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "die in generate")
    with Engine.load(exported("int8"), ITREX) as engine:
        for _ in range(2):  # it is told again, not waited for
            with pytest.raises(DeviceError, match="runs ITREX"):
                list(engine.stream(Tokens((1, 40)), Sampling(max_new_tokens=5)))


def test_logits_are_read_for_parity(exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    folder = exported("int8")
    with itrex.Reader(itrex.load(folder, Manifest.read(folder))) as reader:
        logits = reader.read(np.array([3, 4, 5]), 0)
    assert logits.shape == (3, 320) and logits.argmax(-1).tolist() == [4, 5, 6]


def really() -> None:
    if itrex_home.status().state != "ready":
        pytest.skip(f"ITREX is not set up in {itrex_home.folder()} (glm4-edge itrex setup)")


@pytest.mark.heavy
@pytest.mark.parametrize("recipe", RECIPES)
def test_itrex_says_what_openvino_says(recipe: str, exported: Callable[[str], Path]) -> None:
    really()
    folder = exported(recipe)
    expected = peer.logits(folder, IDS)
    with itrex.Reader(itrex.load(folder, Manifest.read(folder))) as reader:
        at_once = reader.read(np.array(IDS), 0)
        in_parts = np.concatenate([reader.read(np.array(IDS[:5]), 0), reader.read(np.array(IDS[5:]), 5)])
    for logits in (at_once, in_parts):
        assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    with Engine.load(folder, ITREX) as engine:
        sampling = Sampling(temperature=0, max_new_tokens=24, ignore_eos=True, repetition_penalty=1.0)
        chunks = list(engine.stream(Tokens(tuple(IDS)), sampling))
    assert [token for chunk in chunks for token in chunk.token_ids] == peer.greedy(folder, IDS, 24)


@pytest.mark.heavy
@pytest.mark.model
def test_itrex_chats_with_the_pocket_model(pocket_dir: Path) -> None:
    really()
    settings = Settings("CPU", EXACT)  # OpenVINO's shortcuts would take other tokens here and there
    question = [Message("user", "Write a short story about a fox and a crow.")]
    sampling = Sampling(temperature=0, max_new_tokens=64)
    said = []
    for each in (ITREX, settings):
        with Engine.load(pocket_dir, each) as engine:
            chunks = list(engine.stream(question, sampling))
            said.append([token for chunk in chunks for token in chunk.token_ids])
    assert len(said[0]) > 32 and said[0] == said[1]
