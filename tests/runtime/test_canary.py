"""A sound device is let pass; damage, and what overflows f16, is caught."""

from __future__ import annotations

import dataclasses
import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from edge import golden as goldens
from edge import precise
from edge.cli import _run
from edge.errors import ContextError, ModelError
from edge.export import fp16, graph, verify_ir
from edge.export import golden as exported_golden
from edge.files import HOME_VARIABLE
from edge.golden import Golden
from edge.infer import EXACT, core, infer
from edge.manifest import Manifest
from edge.runtime.canary import QUICK, Finding, quick, thorough
from edge.runtime.engine import Engine
from edge.runtime.interface import Probe
from edge.runtime.settings import Precision, Settings
from tests.conftest import write_checkpoint
from tests.export.test_fp16 import wild

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
XML, BIN = "openvino_model.xml", "openvino_model.bin"
F32 = {"INFERENCE_PRECISION_HINT": "f32"}


@dataclass
class Compiled:
    """Probes a model compiled as it is; `blind` as the NPU's pipeline is."""

    model: ov.Model
    properties: dict[str, Any]
    blind: bool = False

    def __post_init__(self) -> None:
        self.request = core().compile_model(self.model, "CPU", self.properties).create_infer_request()

    def probe(self, token_ids: Sequence[int]) -> Probe:
        self.request.reset_state()
        ids = np.array(token_ids)
        logits = infer(self.request, ids, 0)
        told = tuple(goldens.known_log_probs(logits[:-1], ids[1:]).tolist())
        return Probe(int(logits[-1].argmax()), None if self.blind else told)


def golden_of(folder: Path) -> Golden:
    kept = goldens.read(folder)
    assert kept is not None
    return kept


def load(folder: Path) -> ov.Model:
    return core().read_model(folder / XML)


def places(folder: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of each constant in the .bin."""
    found = {}
    for layer in ElementTree.parse(folder / XML).iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None:
            found[str(layer.get("name"))] = int(str(data.get("offset"))), int(str(data.get("size")))
    return found


def flip_bits(data: np.ndarray) -> None:
    data ^= 0x88  # the highest of each 4-bit number


def zero_scales(data: np.ndarray) -> None:
    data[:] = 0


def one_infinite_scale(data: np.ndarray) -> None:
    data.view(np.float16)[0] = np.inf


DAMAGES = [
    ("self_attn.o_proj.weight", flip_bits),
    ("mlp.gate_up_proj.weight", flip_bits),
    ("mlp.down_proj.weight", flip_bits),
    ("mlp.gate_up_proj.weight/scale", zero_scales),
    ("mlp.down_proj.weight/scale", one_infinite_scale),
]


def damaged(folder: Path, copy: Path, name: str, damage: Callable[[np.ndarray], None]) -> Path:
    """The model with one constant's bytes changed in its .bin."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    offset, size = places(folder)[name]
    data = np.fromfile(copy / BIN, np.uint8)
    damage(data[offset : offset + size])
    data.tofile(copy / BIN)
    return copy


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("canary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(place / "home"))
        patch.setattr(verify_ir, "LENGTHS", (1, 2, 8))
        source = write_checkpoint(place / "c", scale=0.15, **SIZES)
        assert _run(["export", str(source), str(place / "out"), "--for", "npu"]) == 0
    return place / "out"


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "pocket_dir" not in request.fixturenames:
        monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))


@pytest.mark.parametrize("properties", [{}, F32, {"KV_CACHE_PRECISION": "u4"}, EXACT], ids=str)
def test_a_sound_device_passes(tiny_dir: Path, properties: dict[str, Any]) -> None:
    golden = golden_of(tiny_dir)
    assert quick(Compiled(load(tiny_dir), properties), golden).ok
    found = thorough(tiny_dir, Settings("CPU", properties), golden)
    assert found.ok and found.reason is None
    rows = found.figures["by_length"]
    assert [row["length"] for row in rows] == list(golden.lengths) == list(goldens.LENGTHS)
    assert all((row["mean_error"] is None) is (row["length"] == 1) for row in rows), "each is read afresh"
    if properties is EXACT:
        assert found.figures["top1_agreement"] == 1 and max(row["token_gap"] for row in rows) == 0
        assert max(row["mean_error"] or 0 for row in rows) < 1e-3


def test_a_penalty_of_the_checkpoints_own_is_not_the_devices_fault(tiny_dir: Path, tmp_path: Path) -> None:
    everything = list(range(3, 258))
    likeliest = Compiled(load(tiny_dir), EXACT).probe(everything).token
    assert likeliest in everything, "a penalty would choose another"
    folder = Path(shutil.copytree(tiny_dir, tmp_path / "penalised"))
    defaults = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**defaults, "repetition_penalty": 5.0}))
    with Engine.load(folder, Settings("CPU", EXACT)) as engine:
        assert engine.probe(everything).token == likeliest


def test_a_rehearsal_passes_and_says_what_it_is(tiny_dir: Path) -> None:
    """The NPU's road gives the last token's logits alone."""
    settings = Settings("NPU", {"MAX_PROMPT_LEN": 256, "MIN_RESPONSE_LEN": 64, **EXACT}, rehearse=True)
    found = thorough(tiny_dir, settings, golden_of(tiny_dir))
    assert found.ok and found.figures["rehearsal"] and found.figures["kl_max"] < 1e-4
    assert all(row["mean_error"] is None for row in found.figures["at_once"])
    assert [row["length"] for row in found.figures["at_once"]][-1] == 129
    assert [row["length"] for row in found.figures["one_by_one"]][-1] == 129


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_damaged_weight_is_caught(
    name: str, damage: Callable[[np.ndarray], None], tiny_dir: Path, tmp_path: Path
) -> None:
    golden = golden_of(tiny_dir)
    broken = damaged(tiny_dir, tmp_path / "broken", f"model.layers.0.{name}", damage)
    for found in (
        quick(Compiled(load(broken), F32), golden),
        thorough(broken, Settings("CPU", F32), golden),
    ):
        assert not found.ok and found.reason and "tokens" in found.reason
        json.dumps(found.figures, allow_nan=False)


def test_what_the_npus_pipeline_says_is_enough_to_see_gross_damage(tiny_dir: Path, tmp_path: Path) -> None:
    golden = golden_of(tiny_dir)
    assert quick(Compiled(load(tiny_dir), {}, blind=True), golden).ok
    broken = damaged(tiny_dir, tmp_path / "broken", "model.layers.0.mlp.gate_up_proj.weight", flip_bits)
    found = quick(Compiled(load(broken), F32, blind=True), golden)
    assert not found.ok and "below the right one" in str(found.reason)


def test_numbers_that_are_none_are_said_to_be_none(tiny_dir: Path) -> None:
    class Blank:
        def probe(self, token_ids: Sequence[int]) -> Probe:
            return Probe(0, tuple([float("nan")] * (len(token_ids) - 1)))

    found = quick(Blank(), golden_of(tiny_dir), (17, 33))
    assert found.reason == "at 17 tokens the logits are not numbers"
    assert [row["mean_error"] for row in found.figures["by_length"]] == [None]


def test_only_one_length_may_be_wrong(tiny_dir: Path) -> None:
    """Some plugins' faults show at single lengths."""
    sound = Compiled(load(tiny_dir), EXACT)

    class Faulty:
        def probe(self, token_ids: Sequence[int]) -> Probe:
            told = sound.probe(token_ids)
            wrong = tuple(value - 5 for value in told.log_probs or ())
            return told if len(token_ids) != 33 else Probe(told.token, wrong)

    found = quick(Faulty(), golden_of(tiny_dir))
    assert str(found.reason).startswith("at 33 tokens") and "5 nats off" in str(found.reason)


def test_a_near_tie_may_fall_either_way(tiny_dir: Path) -> None:
    golden = golden_of(tiny_dir)
    second = {length: int(np.argsort(golden.last(length))[-2]) for length in golden.lengths}
    last = {length: int(golden.last(length).argmin()) for length in golden.lengths}

    class Says:
        def __init__(self, tokens: dict[int, int]) -> None:
            self.tokens = tokens

        def probe(self, token_ids: Sequence[int]) -> Probe:
            return Probe(self.tokens[len(token_ids)], None)

    assert quick(Says(second), golden).ok == all(np.ptp(np.sort(golden.last(n))[-2:]) < 3 for n in QUICK)
    assert not quick(Says(last), golden).ok
    assert not quick(Says(dict.fromkeys(golden.lengths, 10**6)), golden).ok, "no token of the vocabulary"


def test_prompts_beyond_the_npus_limit_are_left_out(tiny_dir: Path) -> None:
    settings = Settings("NPU", {"MIN_RESPONSE_LEN": 32, **EXACT}, context=64, rehearse=True)
    found = thorough(tiny_dir, settings, golden_of(tiny_dir))
    assert found.ok and [row["length"] for row in found.figures["at_once"]][-1] == 64


def test_another_models_golden_logits_are_refused(tiny_dir: Path) -> None:
    golden = golden_of(tiny_dir)
    other = Golden(golden.token_ids, golden.log_probs, golden.lengths, golden.logits[:, :-1])
    with pytest.raises(ModelError, match="another model's"):
        thorough(tiny_dir, Settings("NPU", context=256, rehearse=True), other)


class Short:
    """Has room for so many tokens, the answer's included."""

    def __init__(self, engine: Compiled, context: int) -> None:
        self.engine, self.context = engine, context

    def probe(self, token_ids: Sequence[int]) -> Probe:
        if len(token_ids) >= self.context:
            raise ContextError("too long", hint="Shorten it.")
        return self.engine.probe(token_ids)


def test_a_context_shorter_than_the_golden_prompts(tiny_dir: Path) -> None:
    golden = golden_of(tiny_dir)
    sound = Compiled(load(tiny_dir), EXACT)
    found = quick(Short(sound, 20), golden)
    assert found.ok and [row["length"] for row in found.figures["by_length"]] == [1, 15]
    with pytest.raises(ContextError, match="no room for the 1 token of a golden prompt"):
        quick(Short(sound, 1), golden)
    found = thorough(tiny_dir, Settings("CPU", EXACT, context=20), golden)
    assert found.ok and [row["length"] for row in found.figures["by_length"]][-1] == 17


def test_what_is_no_number_is_not_small(tiny_dir: Path) -> None:
    """Golden logits like these are refused when they are read; a comparison must not let them pass, either."""
    golden = golden_of(tiny_dir)
    blank = dataclasses.replace(golden, logits=np.full_like(golden.logits, np.nan))
    assert not quick(Compiled(load(tiny_dir), EXACT), blank).ok
    assert not thorough(tiny_dir, Settings("NPU", context=256, rehearse=True), blank).ok


# What overflows f16, and how far down the ladder it has to go.
OVERFLOWS: dict[str, tuple[dict[str, float], bool, Precision]] = {
    "guarded": ({}, True, "chosen"),
    "scores, products and residuals": ({}, False, "guilty nodes"),
    "a projection, too": ({"gate_up_proj": 1e4}, False, "f32"),
}


@pytest.mark.parametrize("case", OVERFLOWS)
def test_the_ladder_ends_where_the_numbers_are_right(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """f16 is simulated: every operation that the IR does not spare rounds to it, and overflows as it does."""
    larger, guarded, ends = OVERFLOWS[case]
    folder = _wild(tmp_path, larger, guarded, monkeypatch)
    golden = golden_of(folder)
    assert quick(Compiled(load(folder), EXACT), golden, golden.lengths).ok, "in f32 there is nothing wrong with it"

    def load_in_f16(settings: Settings) -> Compiled:
        if settings.precision == "f32":
            return Compiled(load(folder), EXACT)
        place = precise.variant(folder, tmp_path / "variants") if settings.precision == "guilty nodes" else folder
        return Compiled(fp16.simulated(load(place)), EXACT)

    rungs: tuple[Precision, ...] = ("chosen", "guilty nodes", "f32")
    tried = []
    for rung in rungs:
        finding = quick(load_in_f16(Settings("GPU", precision=rung)), golden)
        tried.append((rung, finding.ok))
        if finding.ok:
            break
        assert finding.reason is not None and finding.reason.startswith("at ")
    assert tried == [(rung, rung == ends) for rung in rungs[: rungs.index(ends) + 1]]


def _wild(
    place: Path, larger: dict[str, float], guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> Path:  # fmt: skip
    """An exported model that computes beyond f16, with or without the export's guards against it."""
    from tests.export import test_fp16

    monkeypatch.setattr(verify_ir, "LENGTHS", (1, 2, 8))
    monkeypatch.setattr(
        test_fp16, "LARGE", {part: value * larger.get(part, 1) for part, value in test_fp16.LARGE.items()}
    )
    checkpoint = wild(place / "c")
    out = place / "out"
    assert _run(["export", str(place / "c"), str(out), "--weights", "bf16"]) == 0
    if not guarded:
        kept = golden_of(out)
        with monkeypatch.context() as patch:
            patch.setattr(graph, "_query_factor", lambda spec: 1.0)
            model = graph.build_model(checkpoint.spec, checkpoint.weight)
        ov.save_model(model, out / XML, compress_to_fp16=False)
        precise.mark(out / XML)
        again = exported_golden.compute(out / XML, checkpoint.spec, kept.token_ids, lambda stage, done, total: None)
        np.testing.assert_allclose(again.logits, kept.logits, atol=1e-4 * np.abs(kept.logits).max())
        sizes = {path.name: path.stat().st_size for path in out.iterdir() if path.name != "edge.json"}
        made = json.loads((out / "edge.json").read_text())
        (out / "edge.json").write_text(json.dumps({**made, "bytes": sizes}))
        Manifest.read(out)
    return out


CPU_SETTINGS: list[dict[str, Any]] = [
    {}, F32, {"KV_CACHE_PRECISION": "u4"}, {"KV_CACHE_PRECISION": "f16"}, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    {**F32, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}, {**F32, "KV_CACHE_PRECISION": "u4"}, EXACT,
]  # fmt: skip


def held_against(folder: Path, properties: dict[str, Any]) -> tuple[Finding, Finding]:
    """What the quick and the thorough canary say of the CPU."""
    golden = golden_of(folder)
    settings = Settings("CPU", properties, context=512)
    with Engine.load(folder, settings) as engine:
        return quick(engine, golden), thorough(folder, settings, golden)


@pytest.mark.model
def test_the_pocket_model_passes_and_its_damage_is_caught(pocket_dir: Path, tmp_path: Path) -> None:
    for found in held_against(pocket_dir, {}):
        assert found.ok, found
    broken = damaged(pocket_dir, tmp_path / "broken", f"model.layers.15.{DAMAGES[1][0]}", flip_bits)
    for found in held_against(broken, {}):
        assert not found.ok and found.reason


@pytest.mark.model
@pytest.mark.heavy
@pytest.mark.parametrize("properties", CPU_SETTINGS, ids=str)
def test_the_pocket_model_passes_in_every_setting(pocket_dir: Path, properties: dict[str, Any]) -> None:
    for found in held_against(pocket_dir, properties):
        assert found.ok, found


@pytest.mark.model
@pytest.mark.heavy
@pytest.mark.parametrize("layer", [0, 15])
@pytest.mark.parametrize(
    ("name", "damage"), [DAMAGES[1], DAMAGES[4]], ids=lambda value: getattr(value, "__name__", str(value))
)
def test_damage_to_the_pocket_model_is_caught(
    layer: int, name: str, damage: Callable[[np.ndarray], None], pocket_dir: Path, tmp_path: Path
) -> None:
    broken = damaged(pocket_dir, tmp_path / "broken", f"model.layers.{layer}.{name}", damage)
    for found in held_against(broken, F32):
        assert not found.ok and found.reason
