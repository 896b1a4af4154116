"""optimum-intel's graph of a checkpoint and ours: the same numbers, the same tokens, each in the other's runtime."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path

import numpy as np
import pytest

from edge.cli import _run
from edge.errors import MissingExtraError, ResourceError, VerificationError
from edge.export import optimum, pipeline
from edge.export.recipe import Recipe
from edge.infer import kl_divergence
from edge.manifest import Manifest
from edge.model import hub
from edge.model.spec import GlmSpec
from tests import peer
from tests.conftest import TINY_CONFIG, write_chatglm, write_checkpoint

IDS = [1, 5, 9, 33, 7, 120, 64, 3, 90, 17, 201, 44, 300, 12]
FITS = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_attention_heads": 4}
GLM4 = {"model_type": "glm4", "architectures": ["Glm4ForCausalLM"], "rms_norm_eps": 1e-5}


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peer.make_python(tmp_path_factory.mktemp("optimum") / "venv")


def both(python: Path, checkpoint: Path, folder: Path, *options: str) -> tuple[Path, Path]:
    """The checkpoint by both exporters."""
    ours, theirs = folder / "ours", folder / "theirs"
    assert _run(["export", str(checkpoint), str(ours), *options]) == 0
    peer.export(python, str(checkpoint), str(theirs), *options)
    return ours, theirs


def assert_same(ours: Path, theirs: Path, tolerance: float, ids: list[int] = IDS, count: int = 24) -> None:
    first, second = peer.logits(ours, ids), peer.logits(theirs, ids)
    assert np.abs(first - second).max() < tolerance * np.abs(first).max()
    assert peer.greedy(ours, ids, count) == peer.greedy(theirs, ids, count)


@pytest.fixture(scope="session")
def exported(python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A `glm` checkpoint, and its export by us and by optimum-intel, in bf16."""
    folder = tmp_path_factory.mktemp("both")
    checkpoint = write_checkpoint(folder / "checkpoint", **FITS)
    return checkpoint, *both(python, checkpoint, folder, "--weights", "bf16")


def test_the_graphs_say_the_same(exported: tuple[Path, Path, Path]) -> None:
    checkpoint, ours, theirs = exported
    assert_same(ours, theirs, 1e-4)
    made = Manifest.read(theirs)
    assert made.exporter == "optimum" and made.versions["optimum-intel"] == "2.2.0"
    assert {"graph parity", "weights", "lengths", "rows", "compression"} <= {check.name for check in made.checks}
    assert made.recipe == Manifest.read(ours).recipe and Manifest.read(ours).exporter == "glm4-edge"
    assert _run(["verify", str(theirs), "--against", str(checkpoint)]) == 0


def test_optimum_intel_runs_our_export(python: Path, exported: tuple[Path, Path, Path]) -> None:
    assert generated(python, exported[1], IDS, 16)[1] == peer.greedy(exported[1], IDS, 16)


@pytest.mark.heavy
def test_the_graphs_of_glm4_say_the_same(python: Path, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "glm4", **FITS, **GLM4)
    assert_same(*both(python, checkpoint, tmp_path, "--weights", "bf16"), 1e-4)


RECIPES = {
    "int8": ("--weights", "int8"),
    "int4": ("--group-size", "32", "--asym", "--no-calibrate", "--ratio", "1"),
    "npu": ("--for", "npu"),
    "calibrated": (),
    "fp16": ("--weights", "fp16"),
}


@pytest.mark.heavy
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_kept(recipe: str, python: Path, tmp_path: Path) -> None:
    """Bits, groups and symmetry are checked by the export; rounded alike, the numbers are the same, too."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", **FITS)
    ours, theirs = both(python, checkpoint, tmp_path, *RECIPES[recipe])
    if recipe == "calibrated":  # over other vectors of the same texts
        text = np.random.default_rng(0).integers(0, 320, 200).tolist()
        assert kl_divergence(peer.logits(ours, text), peer.logits(theirs, text)).mean() < 0.3
    else:
        assert_same(ours, theirs, 2e-3)


@pytest.mark.heavy
def test_the_original_layout_is_traced_too(python: Path, tiny: Path, tmp_path: Path) -> None:
    """optimum-intel by itself would need an old transformers and remote code."""
    checkpoint = write_chatglm(tmp_path / "chatglm", tiny)
    assert_same(*both(python, checkpoint, tmp_path, "--weights", "bf16"), 1e-4)


@pytest.mark.heavy
@pytest.mark.model
@pytest.mark.timeout(1800)
def test_the_pocket_model(python: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = both(python, Path("pocket"), tmp_path, "--weights", "bf16")
    ids = AutoTokenizer.from_pretrained(ours).encode("The capital of France is Paris. The capital of Italy is")
    assert_same(ours, theirs, 1e-4, ids, 48)


def generated(python: Path, folder: Path, ids: list[int] | str, count: int) -> tuple[list[int], list[int]]:
    done = peer.run(python, "-c", peer.GENERATE, str(folder), json.dumps(ids), str(count))
    assert done.returncode == 0, done.stderr
    kind, read, found = json.loads(done.stdout.splitlines()[-1])
    assert kind == "OVModelForCausalLM"
    return read, found


@pytest.mark.heavy
def test_optimum_intel_runs_our_export_of_the_original_layout(python: Path, tmp_path: Path) -> None:
    """Its config.json and tokenizer there are written by us."""
    checkpoint = write_chatglm(tmp_path / "chatglm", write_checkpoint(tmp_path / "checkpoint", **FITS))
    assert _run(["export", str(checkpoint), str(tmp_path / "ours"), "--no-calibrate"]) == 0
    assert generated(python, tmp_path / "ours", IDS, 16)[1] == peer.greedy(tmp_path / "ours", IDS, 16)


@pytest.mark.heavy
@pytest.mark.model
def test_optimum_intel_chats_with_the_pocket_model(python: Path, pocket_dir: Path) -> None:
    ids, tokens = generated(python, pocket_dir, "What is the capital of France?", 8)
    assert tokens == peer.greedy(pocket_dir, ids, 8)
    from transformers import AutoTokenizer

    assert "Paris" in AutoTokenizer.from_pretrained(pocket_dir).decode(tokens)


def test_a_missing_package_is_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert _run(["export", str(tiny), str(tmp_path / "out"), "--exporter", "optimum"]) == 1
    assert 'pip install "glm4-edge[optimum]"' in capsys.readouterr().err
    with pytest.raises(MissingExtraError, match="torch"):
        optimum.require()


def test_no_dry_run_of_it(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["export", str(tiny), str(tmp_path / "out"), "--exporter", "optimum", "--dry-run"]) == 2
    assert "--dry-run" in capsys.readouterr().err


def job(tiny: Path, out: Path) -> pipeline.Job:
    return pipeline.prepare(
        hub.Located(tiny, str(tiny), None, None), out, target="cpu", make_recipe=lambda spec: Recipe("bf16"),
        exporter="optimum",
    )  # fmt: skip


def silent(stage: str, done: int, total: int) -> None:
    pass


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.stderr.write('no such thing'); sys.exit(3)", "it ended with 3: no such thing"),
        ('print(\'{"error": "ValueError: too new"}\'); raise SystemExit(1)', "ValueError: too new"),
        ("raise SystemExit(0)", "it ended with 0"),
        ("print('Intel MKL WARNING\\n7'); raise SystemExit(2)", "it ended with 2"),
    ],
)
def test_a_trace_that_fails_leaves_nothing(
    script: str, reason: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimum, "_BEGIN", script)
    with pytest.raises(VerificationError, match=reason):
        pipeline.run(job(tiny, tmp_path / "out"), silent)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_trace(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os, json, time; print(json.dumps({'stage': str(os.getpid())}), flush=True); time.sleep(600)"
    monkeypatch.setattr(optimum, "_BEGIN", script)
    tracing: list[int] = []

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage.isdigit():
            tracing.append(int(stage))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.run(job(tiny, tmp_path / "out"), interrupt)
    assert list(tmp_path.iterdir()) == []
    import psutil

    assert tracing and (os.name == "nt" or not psutil.pid_exists(tracing[0]))


def test_a_machine_too_small_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimum, "_PROGRAM_BYTES", 1 << 60)
    with pytest.raises(ResourceError, match="GB in memory"):
        optimum.check_machine(GlmSpec.from_config(TINY_CONFIG), Recipe("bf16"), tmp_path / "out")
