"""Parity: the KL bound against the whole divergence, and an exported model against its checkpoint."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.cli import _run
from edge.errors import DeviceError, ModelError, VerificationError
from edge.infer import kl_divergence
from edge.manifest import Manifest
from edge.model.checkpoint import Checkpoint
from edge.runtime import parity, prompts
from edge.runtime import trial as trials
from edge.runtime.likeness import lumped_kl
from edge.runtime.refstore import Entry, Positions, Reference
from edge.runtime.settings import Settings
from tests.conftest import write_checkpoint

VOCAB = 50


def kept(logits: NDArray[np.float32], tokens: NDArray[np.int64], top_k: int) -> Positions:
    """What a reference would keep of a model that says `logits` [S - 1, vocab] after S - 1 of S tokens."""
    wide = logits.astype(np.float64)
    total = np.log(np.exp(wide).sum(1))
    ids = np.argsort(-wide, axis=1, kind="stable")[:, :top_k]
    following = np.take_along_axis(wide, tokens[1:, None], 1)[:, 0] - total
    return Positions(tokens, ids, np.take_along_axis(wide, ids, 1), total, following)


def random_logits(seed: int, rows: int = 40) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((rows, VOCAB)) * 3).astype(np.float32)


def lumped(p: NDArray[np.float32], q: NDArray[np.float32], top_k: int) -> NDArray[np.float64]:
    one = kept(p, np.zeros(len(p) + 1, np.int64), top_k)
    return lumped_kl(one.top_ids, one.top_logits, one.log_sum_exp, q)


def test_the_bound_rises_with_k_to_the_whole_divergence() -> None:
    p, q = random_logits(0), random_logits(1)
    whole = kl_divergence(p, q)
    bounds = [lumped(p, q, k) for k in (1, 5, 20, VOCAB)]
    for lower, higher in itertools.pairwise(bounds):
        assert (lower <= higher + 1e-9).all()
    assert np.allclose(bounds[-1], whole, atol=1e-9)
    assert (bounds[0] > 0).all() and bounds[2].mean() > 0.8 * whole.mean()


def test_the_bound_is_exact_where_the_tail_keeps_its_shape() -> None:
    """q moves mass between the top and the tail, and leaves the tail's shares among themselves."""
    p = random_logits(2)
    q = p.copy()
    ids = np.argsort(-p, axis=1, kind="stable")[:, :8]
    np.put_along_axis(q, ids, np.take_along_axis(q, ids, 1) + np.linspace(-1, 1, 8, dtype=np.float32), 1)
    assert np.allclose(lumped(p, q, 8), kl_divergence(p, q), atol=1e-6)


def test_the_bound_of_equal_models_is_nought_and_of_certain_ones_finite() -> None:
    p = random_logits(3)
    assert lumped(p, p, 5).max() < 1e-12
    assert lumped(p, p + 7, 5).max() < 1e-6  # a shift of all logits changes no probability
    certain = np.full_like(p, -200)
    certain[:, 3] = 0
    other = np.full_like(p, -200)
    other[:, 4] = 0
    assert np.allclose(lumped(certain, other, 5), kl_divergence(certain, other), rtol=1e-6)


def entry(prompt: int, answer: int, name: str = "a", language: str = "en") -> Entry:
    return Entry(id=name, language=language, prompt_tokens=prompt, answer_tokens=answer, ttft_s=1, decode_s=1,
                 unlike_forced=0)  # fmt: skip


def runner(logits: NDArray[np.float32], calls: list[tuple[int, int]]) -> Callable[..., NDArray[np.float32]]:
    def run(tokens: NDArray[np.int64], past: int) -> NDArray[np.float32]:
        calls.append((past, len(tokens)))
        return logits[past : past + len(tokens)]

    return run


def test_a_prompt_is_read_in_pieces_and_the_answer_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "_PIECE", 16)
    p, q = random_logits(4), random_logits(5)
    tokens = np.concatenate([np.arange(31), p[30:].argmax(1)])
    positions = kept(p, tokens, 8)
    calls: list[tuple[int, int]] = []
    same = parity.compare_prompt(entry(31, 10), positions, runner(p, calls))
    assert calls == [(0, 16), (16, 15), *((31 + i, 1) for i in range(9))]
    assert same.first_divergence is None and same.top1.all() and (same.top5 == 1).all()
    assert same.kl.max() < 1e-9 and same.worst_logit_error.max() < 1e-5
    assert np.allclose(same.log_probs, same.reference_log_probs, atol=1e-6)
    moved = p.copy()
    moved[33] = q[33]
    moved[33, tokens[34]] = -50  # the token that follows position 33 is the fourth of the answer
    assert parity.compare_prompt(entry(31, 10), positions, runner(moved, [])).first_divergence == 3
    other = parity.compare_prompt(entry(31, 10), positions, runner(q, []))
    assert np.allclose(other.top1, p.argmax(1) == q.argmax(1))
    five = [len(set(np.argsort(-a)[:5]) & set(np.argsort(-b)[:5])) / 5 for a, b in zip(p, q, strict=True)]
    assert np.allclose(other.top5, five)
    wide = q.astype(np.float64)
    expected = wide[np.arange(40), tokens[1:]] - np.log(np.exp(wide).sum(1))
    assert np.allclose(other.log_probs, expected, atol=1e-6)
    with pytest.raises(VerificationError, match="within tokens 0 to 16 of the prompt 'a' are not finite"):
        parity.compare_prompt(entry(31, 10), positions, runner(np.full_like(p, np.nan), []))


def test_groups_and_gates() -> None:
    p, q = random_logits(6), random_logits(7)
    members = []
    for name, language, prompt, logits in (("a", "en", 31, p), ("b", "zh", 31, q)):
        tokens = np.concatenate([np.arange(prompt), p[prompt - 1 :].argmax(1)])
        members.append(
            parity.compare_prompt(entry(prompt, 41 - prompt, name, language), kept(p, tokens, 8), runner(logits, []))
        )
    groups = parity._grouped(members)
    assert list(groups) == ["all", "prompts to 64", "en", "zh"]
    right, wrong, both = groups["en"], groups["zh"], groups["all"]
    assert (right.same_answers, right.first_divergence, right.top1) == (1, None, 1.0)
    assert wrong.same_answers == 0 and wrong.first_divergence is not None
    assert both.kl_mean == pytest.approx(wrong.kl_mean / 2, abs=1e-9) and both.kl_worst == wrong.kl_worst
    assert right.perplexity == pytest.approx(right.perplexity_reference, rel=1e-6)
    # of the prompt only: the answer's tokens are the checkpoint's own
    assert right.perplexity_reference == pytest.approx(float(np.exp(-members[0].reference_log_probs[:30].mean())))
    assert parity.failures(right, {gate.option: 1.0 for gate in parity.GATES} | {"--max-ppl-ratio": 1.001}) == []
    assert len(parity.failures(wrong, {gate.option: 1e-3 if gate.at_most else 0.999 for gate in parity.GATES})) == 6
    assert parity.failures(wrong, {"--max-kl": None}) == []
    (said,) = parity.failures(wrong, {"--max-kl": 0.5})
    assert said.startswith("the mean KL divergence is") and said.endswith("above --max-kl 0.5")
    lines = parity.table(parity.Parity("CPU", {}, groups, members)).splitlines()
    assert len(lines) == 6 and lines[1].startswith("all") and "1/1" in lines[3]


# --- an exported model against its checkpoint


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model in bf16 as the command line exports it, and the reference of its checkpoint."""
    pytest.importorskip("torch")
    scratch = tmp_path_factory.mktemp("parity")
    checkpoint = write_checkpoint(scratch / "checkpoint", vocab_size=320)
    out = scratch / "bf16"
    assert _run(["export", str(checkpoint), str(out), "--weights", "bf16"]) == 0
    prompts = [{"id": "short", "language": "en", "text": "abc"}, {"id": "long", "language": "zh", "text": "abc " * 40}]
    (scratch / "mine.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    words = ["reference", str(checkpoint), str(scratch / "tiny.ref"), "--prompts", str(scratch / "mine.jsonl")]
    assert _run([*words, "--max-new-tokens", "16", "--device", "cpu"]) == 0
    return out, scratch / "tiny.ref"


def test_an_exact_export_is_on_par(exported: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, path = exported
    from edge.infer import EXACT

    monkeypatch.setattr(parity.devices, "default_properties", lambda *_: EXACT)
    found = parity.compare(folder, Reference.read(path), "CPU")
    everything = found.groups["all"]
    assert everything.kl_worst < 1e-6 and everything.top1 == 1 and everything.same_answers == 2
    assert everything.perplexity_ratio == pytest.approx(1, abs=1e-4) and everything.logit_error_worst < 1e-2
    assert list(found.groups) == ["all", "prompts to 64", "prompts to 256", "en", "zh"]
    assert everything.positions == sum(len(one.log_sum_exp) for one in Reference.read(path).positions)


def test_the_command_prints_a_table_or_json_and_holds_a_gate(
    exported: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["parity", *map(str, exported)]
    assert _run([*words, "--max-kl", "0.5"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:2] == ["prompts", "tokens"] and table[1].startswith("all")
    assert _run([*words, "--json", "--max-kl", "0", "--max-kl-worst", "0"]) == 1
    spoken = capsys.readouterr()
    found = json.loads(spoken.out)
    assert len(found["failed"]) == 2 and found["groups"]["all"]["prompts"] == 2
    assert found["reference"]["dtype"] == "f32" and [one["id"] for one in found["prompts"]] == ["short", "long"]
    assert "does not keep 2 bounds" in spoken.err and "above --max-kl 0" in spoken.err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-kl", "nan"),
        ("--max-kl-worst", "-1"),
        ("--min-top1", "85"),
        ("--min-top5", "nan"),
        ("--min-top5", "-0.1"),
    ],
)
def test_a_bound_that_can_only_fail_is_wrong_usage(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["parity", str(tmp_path), str(tmp_path / "x.ref"), option, value]) == 2
    assert option in capsys.readouterr().err


def test_a_damaged_model_is_seen(exported: tuple[Path, Path], tmp_path: Path) -> None:
    """One matrix zeroed: numbers that are finite and wrong."""
    folder, path = exported
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    file = damaged / "openvino_model.bin"
    data = file.read_bytes()
    checkpoint = Checkpoint(path.parent / "checkpoint")
    matrix = checkpoint.weight("model.layers.0.mlp.gate_up_proj.weight").raw.tobytes()
    assert data.count(matrix) == 1
    file.write_bytes(data.replace(matrix, bytes(len(matrix))))
    assert parity.compare(damaged, Reference.read(path), "CPU").groups["all"].kl_mean > 0.1
    assert _run(["parity", str(damaged), str(path), "--max-kl", "0.05"]) == 1


def test_a_reference_of_another_model_is_refused(exported: tuple[Path, Path]) -> None:
    folder, path = exported
    manifest = Manifest.read(folder)

    def with_checkpoint(**change: Any) -> Reference:
        made = Reference.read(path)
        checkpoint = made.about.checkpoint.model_copy(update=change)
        return Reference(made.about.model_copy(update={"checkpoint": checkpoint}), made.positions)

    parity.check_same_model(manifest, with_checkpoint(), folder)
    digests = Reference.read(path).about.checkpoint.sha256
    parity.check_same_model(manifest, with_checkpoint(sha256=digests | {"tokenizer_config.json": "0"}), folder)
    for change, says in (
        ({"vocab_size": 151552}, "with 151,552 entries in the vocabulary, and .* has 320"),
        ({"num_layers": 40}, "with 40 layers, and .* has 2"),
        ({"sha256": digests | {"model.safetensors": "0"}}, "whose model.safetensors is not the one"),
        ({"sha256": digests | {"tokenizer.json": "0"}}, "whose tokenizer.json is not the one"),
        ({"sha256": digests | {"model-2.safetensors": "0"}}, "whose model-2.safetensors is not the one"),
    ):
        with pytest.raises(ModelError, match=says):
            parity.check_same_model(manifest, with_checkpoint(**change), folder)


@pytest.mark.parametrize("device", ["NPU", "HETERO:GPU,NPU"])
def test_the_npu_is_refused_with_a_reason(
    device: str, exported: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = exported
    monkeypatch.setattr(parity.Choices, "resolved", lambda self, device, folder: device)
    with pytest.raises(DeviceError, match="last token only"):
        parity.compare(folder, Reference.read(path), device)


@pytest.mark.parametrize("device", ["GPU", "HETERO:GPU,CPU"])
def test_a_driver_that_crashes_does_so_in_a_process_of_its_own(
    device: str, exported: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = exported
    monkeypatch.setattr(parity.Choices, "resolved", lambda self, device, folder: device)
    script = "import os\nfrom edge.runtime import trial\ntrial._parity = lambda *asked: os.abort()\ntrial.main()\n"

    def crashing(*asked: Any, **options: Any) -> trials.Outcome:
        return trials.run(*asked, **options, command=[sys.executable, "-c", script])

    with pytest.raises(DeviceError, match=f"loading the model on {device} ended in"):
        parity.compare(folder, Reference.read(path), device, trial=crashing)


def test_the_trial_loads_as_the_comparison_does(exported: tuple[Path, Path]) -> None:
    outcome = trials.run(exported[0], Settings("CPU"), 120, task="parity")
    assert outcome.ok, outcome.sentence


def test_a_perplexity_beyond_all_measure_is_a_number(tmp_path: Path) -> None:
    p = random_logits(11)
    q = p.copy()
    q[np.arange(len(q)), np.arange(1, len(q) + 1) % VOCAB] = -1e6
    positions = kept(p, np.arange(len(p) + 1) % VOCAB, 8)
    one = parity.compare_prompt(entry(len(p), 1), positions, runner(q, []))
    found = parity.Parity("CPU", {}, parity._grouped([one]), [one])
    assert found.groups["all"].perplexity > 1e300
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.model
def test_the_pocket_model_in_int4_is_as_near_as_its_export_says(
    pocket_checkpoint: Path, pocket_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against the checkpoint in f32: measured were 0.13 nats and 79 %; what is not compressed has 0 and 100 %."""
    pytest.importorskip("torch")
    chosen = ("en-capital", "en-fox", "zh-capital", "zh-opening")
    lines = Path(prompts.__file__).with_name("prompts.jsonl").read_text(encoding="utf-8").splitlines()
    few = [line for line in lines if json.loads(line)["id"] in chosen]
    (tmp_path / "few.jsonl").write_text("".join(line + "\n" for line in few), encoding="utf-8")
    reference = tmp_path / "pocket.ref"
    words = ["reference", "pocket", str(reference), "--prompts", str(tmp_path / "few.jsonl"), "--dtype", "f32"]
    assert _run([*words, "--device", "cpu", "--max-new-tokens", "8"]) == 0
    capsys.readouterr()
    bounds = ["--max-kl", "0.25", "--min-top1", "0.65", "--max-ppl-ratio", "1.5"]
    assert _run(["parity", str(pocket_dir), str(reference), "--device", "CPU", "--json", *bounds]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in found["prompts"]] == list(chosen) and found["reference"]["dtype"] == "f32"
    figures = found["groups"]["all"]
    assert (
        0.02 < figures["kl_mean"] < 0.25 and 0.65 < figures["top1"] < 0.95 and 0.67 < figures["perplexity_ratio"] < 1.5
    )
