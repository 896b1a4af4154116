"""`glm4-edge verify`: a right model passes, and each way to damage one is seen and told."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from edge.cli import _run
from edge.export import graph, tokenize, verify_ir
from edge.export.graph import build_model
from edge.files import HOME_VARIABLE
from edge.model import tokenizer as tokenizers
from edge.model.checkpoint import Checkpoint
from tests.conftest import write_chatglm, write_checkpoint

SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
OPTIONS = ["--group-size", "-1", "--sym", "--ratio", "1", "--for", "npu"]


@pytest.fixture(autouse=True)
def few_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are run by the tests of that check."""
    monkeypatch.setattr(verify_ir, "LENGTHS", (1, 2, 8))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("verify") / "c", num_hidden_layers=3, **SIZES)


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    out = checkpoint.parent / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(checkpoint.parent / "home"))
        assert _run(["export", str(checkpoint), str(out), *OPTIONS]) == 0
    return out


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def outcome(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the checks by name, and standard error."""
    capsys.readouterr()
    code = _run(["verify", *argv, "--json"])
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer["passed"] == (code == 0)
    return code, {check["name"]: check for check in answer["checks"]}, err


def places(folder: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of each constant in the .bin."""
    found = {}
    for layer in ElementTree.parse(folder / "openvino_model.xml").iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None:
            found[str(layer.get("name"))] = int(str(data.get("offset"))), int(str(data.get("size")))
    return found


def test_a_right_model_passes(exported: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, checks, _ = outcome(capsys, str(exported), "--against", str(checkpoint))
    assert code == 0
    assert list(checks) == ["files", "tokenizer", "template", "stop ids", "weights", "fusions", "lengths",
                            "golden", "npu rehearsal", "rows", "compression"]  # fmt: skip
    assert all(check["passed"] and check["message"] is None for check in checks.values())
    kept = {check["name"] for check in json.loads((exported / "edge.json").read_text())["checks"]}
    assert kept == {*checks, "graph parity"} - {"files"}, "an export runs the same checks"


def test_the_table_says_what_was_not_checked(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["verify", str(exported)]) == 0
    out = capsys.readouterr().out
    assert "not compared with a checkpoint" in out and "--against" in out
    assert "i4 sym, per channel (3 matrices)" in out and "9 checks, 0 failed, 0 with a warning" in out


def truncate(folder: Path) -> None:
    path = folder / "openvino_model.bin"
    path.write_bytes(path.read_bytes()[:-100])


def swap_layers(folder: Path) -> None:
    where = places(folder)
    (first, size), (second, other) = (where[f"model.layers.{i}.mlp.gate_up_proj.weight"] for i in (0, 1))
    assert size == other
    data = bytearray((folder / "openvino_model.bin").read_bytes())
    data[first : first + size], data[second : second + size] = data[second : second + size], data[first : first + size]
    (folder / "openvino_model.bin").write_bytes(data)


def edit_template(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "chat_template": config["chat_template"] + "!"}))


def remove_eos(folder: Path) -> None:
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text())
    assert generation["eos_token_id"] == [1, 2]
    path.write_text(json.dumps({**generation, "eos_token_id": [1]}))


def swap_tokenizer(folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    shutil.copy(folder / "tokenizer_config.json", other)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    text = text.replace('"a":', '"?!":').replace('"b":', '"a":').replace('"?!":', '"b":')
    (other / "tokenizer.json").write_text(text, encoding="utf-8")
    assert tokenize.export_tokenizer(tokenizers.load(other), other).passed
    made = json.loads((folder / "edge.json").read_text())
    for path in other.glob("openvino_*"):
        shutil.copy(path, folder)
        made["bytes"][path.name] = path.stat().st_size
    (folder / "edge.json").write_text(json.dumps(made))


def put_nan(folder: Path) -> None:
    offset = next(
        offset for name, (offset, _) in places(folder).items() if "layers.1" in name and name.endswith("/scale")
    )
    data = bytearray((folder / "openvino_model.bin").read_bytes())
    data[offset : offset + 2] = np.float16(np.nan).tobytes()
    (folder / "openvino_model.bin").write_bytes(data)


def claim_other_groups(folder: Path) -> None:
    made = json.loads((folder / "edge.json").read_text())
    made["recipe"]["group_size"] = 32
    (folder / "edge.json").write_text(json.dumps(made))


@pytest.mark.parametrize(
    ("damage", "failed", "said"),
    [
        (truncate, {"files"}, "openvino_model.bin has"),
        (swap_layers, {"rows", "compression", "golden"}, "gate_up_proj.weight of the finished model is not"),
        (edit_template, {"template"}, "another chat template"),
        (remove_eos, {"stop ids"}, "[2] belongs among them"),
        (swap_tokenizer, {"tokenizer", "template", "golden"}, "differs from the checkpoint's on"),
        (put_nan, {"weights", "lengths", "golden", "npu rehearsal", "compression"}, "an infinity or a NaN"),
        (claim_other_groups, {"weights"}, "per channel, where the recipe (int4, groups of 32)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_damage_is_caught(
    damage: Callable[[Path], None], failed: set[str], said: str, copy: Path, checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    damage(copy)
    against = () if damage is edit_template else ("--against", str(checkpoint))  # else the checkpoint's is the measure
    code, checks, err = outcome(capsys, str(copy), *against)
    wrong = {name: check for name, check in checks.items() if not check["passed"]}
    assert code == 1 and wrong.keys() == failed, wrong
    assert said in " ".join(check["message"] for check in wrong.values())
    assert all(check["hint"] for check in wrong.values())
    assert f"{len(wrong)} of {len(checks)} checks" in err and "Traceback" not in err


def test_another_models_checkpoint_is_seen(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_checkpoint(tmp_path / "c", seed=1, num_hidden_layers=3, **SIZES)
    code, checks, _ = outcome(capsys, str(exported), "--against", str(other))
    assert code == 1 and not checks["rows"]["passed"]


@pytest.mark.parametrize("layout", ["chatglm", "glm4"])
def test_every_layout_is_verified(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    source = write_checkpoint(tmp_path / "c", **SIZES, **({"model_type": "glm4"} if layout == "glm4" else {}))
    if layout == "chatglm":
        source = write_chatglm(tmp_path / "chatglm", source)
    assert _run(["export", str(source), str(tmp_path / "out"), *OPTIONS]) == 0
    code, checks, _ = outcome(capsys, str(tmp_path / "out"), "--against", str(source))
    assert code == 0 and checks["rows"]["passed"] and checks["compression"]["passed"]


def traced_like(exported: Path, checkpoint: Path, folder: Path) -> Path:
    """What a tracing exporter leaves: no edge.json, names of modules, q and k as in the checkpoint, RoPE by gathers.

    The checkpoint's rows stand as they are, and adjacent pairs are put in half-split order by a Gather at run time.
    """
    shutil.copytree(exported, folder)
    for name in ("edge.json", "openvino_model.xml", "openvino_model.bin"):
        (folder / name).unlink()
    source = Checkpoint(checkpoint)
    spec = source.spec
    rope = graph._Builder.rope

    def gathered(self: Any, x: Any) -> Any:
        order = graph.rotary_row_order(1, spec.head_dim, spec.rotary_dim)
        return rope(self, graph.ops.gather(x, graph._i64(order.tolist()), graph._i64(-1)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph._Builder, "rope", gathered)
        patch.setattr(graph, "rotary_row_order", _natural(graph.rotary_row_order))
        model = build_model(spec, source.weight)
    for node in model.get_ops():
        name = node.get_friendly_name()
        if node.get_type_name() == "MatMul" and name.startswith(("model.", "lm_head")):
            node.set_friendly_name(f"__module.{name}/ov_ext::linear/MatMul")
        elif node.get_type_name() == "Constant" and name.startswith(("model.", "lm_head")):
            node.set_friendly_name(f"self.{name.removesuffix('.weight')}._openvino_orig_weight")
        elif name.endswith(".mlp_residual"):
            node.set_friendly_name(f"__module.{name.removesuffix('.mlp_residual')}/aten::add/Add_1")
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    return folder


def _natural(order: Callable[..., Any]) -> Callable[..., Any]:
    """Leaves the rows of whole matrices alone; one head's order is the real one."""
    return lambda heads, dim, rotary: order(heads, dim, rotary) if heads == 1 else np.arange(heads * dim)


def test_a_traced_model_of_another_maker(
    exported: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names as optimum-intel 2.2.0 gives them; it is slow where RoPE does not fuse, and that is a warning."""
    folder = traced_like(exported, checkpoint, tmp_path / "traced")
    code, checks, _ = outcome(capsys, str(folder), "--against", str(checkpoint))
    assert code == 0, checks
    assert checks["rows"]["figures"]["matrices"] == 20 and checks["rows"]["figures"]["unknown_matrices"] == 0
    assert checks["rows"]["figures"]["worst_error"] == 0
    assert checks["compression"]["figures"]["kl_mean"] < 1e-6
    assert checks["lengths"]["passed"] and checks["weights"]["figures"]["kinds"]["q_proj"] == {"bf16": 3}


def test_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["verify", str(tmp_path)]) == 1
    assert "holds no exported model" in capsys.readouterr().err
