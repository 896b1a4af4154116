"""The NPU's fixed shapes, run on the CPU: a right model passes, and every way to be wrong is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.cli import _run
from edge.errors import ContextError, VerificationError
from edge.export import rehearse as rehearsing
from edge.export.rehearse import rehearse
from edge.files import HOME_VARIABLE
from edge.infer import core
from edge.npu import REHEARSED, check_prompt, recipe_notes, refusal, rehearsal_properties
from tests.conftest import write_checkpoint

SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16,
                         "num_attention_heads": 4}  # fmt: skip
IDS = np.random.default_rng(5).integers(3, 258, 128).tolist()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("npu")
    write_checkpoint(folder / "c", **SIZES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(folder / "home"))
        assert _run(["export", str(folder / "c"), str(folder / "out"), "--for", "npu"]) == 0
    return folder / "out"


def test_an_export_for_the_npu_is_rehearsed(exported: Path) -> None:
    checks = {check["name"]: check for check in json.loads((exported / "edge.json").read_text())["checks"]}
    figures = checks["npu rehearsal"]["figures"]
    assert figures["ran"] == REHEARSED == "on the CPU, not on NPU hardware"
    assert (figures["mode"], figures["ratio"], figures["group_size"]) == ("int4_sym", 1.0, 64)
    assert figures["prompts"] == [32, 64, 64] and figures["tokens"] == figures["same_tokens"] == 21
    assert figures["logit_distance"] < 1e-3 * figures["logit_scale"]


def test_what_is_told_of_it_says_that_it_ran_on_the_cpu(exported: Path) -> None:
    from edge.manifest import Manifest
    from edge.report import summary

    made = Manifest.read(exported)
    assert "rehearsed on the CPU, not on NPU hardware: 21 of 21 tokens" in summary(made)
    others = [check for check in made.checks if check.name != "npu rehearsal"]
    assert "not rehearsed for the NPU" in summary(made.model_copy(update={"checks": others}))


def test_a_cache_that_forgets_is_caught(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second road is shown every prompt with one token changed, as if a shape cut it off."""
    real, calls = rehearsing.infer, [0]

    def forgetful(request: Any, ids: np.ndarray, past: int) -> np.ndarray:
        calls[0] += 1
        return real(request, np.r_[7, ids[1:]] if calls[0] % 2 == 0 and past == 0 else ids, past)

    monkeypatch.setattr(rehearsing, "infer", forgetful)
    with pytest.raises(VerificationError, match="fixed shapes the logits lie"):
        rehearse(exported / "openvino_model.xml", IDS)


def test_a_limit_that_does_not_hold_is_caught(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsing, "rehearsal_properties", lambda longest, answer: rehearsal_properties(80, answer))
    with pytest.raises(VerificationError, match="a prompt of 65 tokens was taken, where the NPU's limit is 64"):
        rehearse(exported / "openvino_model.xml", IDS)


@pytest.mark.parametrize(
    ("key", "value"), [("mode", "int4_asym"), ("ratio", "0.8"), ("group_size", "0"), ("group_size", "96")]
)
def test_an_ir_that_does_not_say_it_is_legal_is_refused(
    exported: Path, key: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = recipe_notes(core().read_model(exported / "openvino_model.xml"))
    assert notes == {"mode": "int4_sym", "group_size": "64", "ratio": "1.0"} and refusal(notes) is None
    monkeypatch.setattr(rehearsing, "recipe_notes", lambda model: {**notes, key: value})
    with pytest.raises(VerificationError, match=f"{key} {value}.*NPU takes int4_sym"):
        rehearse(exported / "openvino_model.xml", IDS)


@pytest.mark.parametrize(("group", "taken"), [("-1", True), ("128", True), ("32", False), ("missing", False)])
def test_groups_the_npu_takes(group: str, taken: bool) -> None:
    assert (refusal({"mode": "int4_sym", "group_size": group, "ratio": "1"}) is None) is taken


def test_a_prompt_is_refused_above_the_limit_only() -> None:
    check_prompt(1024)
    with pytest.raises(ContextError, match=r"1,025 tokens, where .* at most 1,024"):
        check_prompt(1025)


@pytest.mark.model
@pytest.mark.slow
def test_the_pocket_model_for_the_npu_passes_its_rehearsal(pocket_checkpoint: Path, tmp_path: Path) -> None:
    assert _run(["export", str(pocket_checkpoint), str(tmp_path / "out"), "--for", "npu"]) == 0
    checks = {check["name"]: check for check in json.loads((tmp_path / "out" / "edge.json").read_text())["checks"]}
    figures = checks["npu rehearsal"]["figures"]
    assert figures["ran"] == REHEARSED
    assert figures["same_tokens"] == figures["tokens"] == 21
    assert figures["logit_distance"] < 0.005 * figures["logit_scale"]
