"""Adapters that cannot be used, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import CheckpointError
from edge.lora.adapter import Adapter, other_base
from edge.lora.asked import Asked
from edge.lora.config import Config
from edge.model.spec import GlmSpec
from tests.conftest import TINY_CONFIG
from tests.lora.made import CHATGLM, HF, write_adapter

SPEC = GlmSpec.from_config(TINY_CONFIG)
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def read(folder: Path, scale: float = 1.0) -> Adapter:
    return Adapter.read(Asked(folder, scale), SPEC)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING.*takes no keys and values from outside"),
        ({"peft_type": "ADALORA"}, "kind ADALORA, not LORA"), ({"peft_type": None}, "not LORA"),
        ({"use_dora": True}, "use_dora = true: DoRA"),
        ({"modules_to_save": ["lm_head"]}, r'modules_to_save = \["lm_head"\]: whole modules'),
        ({"bias": "all"}, 'bias = "all": biases were trained'), ({"lora_bias": True}, "lora_bias = true"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out = true"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*own weights were changed"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga.*own weights were changed"),
        ({"r": 0}, "r is 0"), ({"r": True}, "r is True"), ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"), ({"rank_pattern": [3]}, r"rank_pattern is \[3\]"),
        ({"r": 5}, r"down_proj has matrices of .* rank 5 on this model asks for \[48, 5\] and \[5, 96\]"),
        ({"rank_pattern": {"q_proj": 3}}, "self_attn.q_proj has matrices of .* rank 3"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_had(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        read(write_adapter(tmp_path / "a", SPEC, **config))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({Q: np.full((4, 48), np.nan, np.float32)}, "q_proj.lora_A.weight holds values that are not finite"),
        ({Q.replace("A.weight", "A.second.weight"): np.ones((4, 48), np.float32)}, "two matrices A for .*q_proj"),
        ({Q: None}, "lora_A of model.layers.0.self_attn.q_proj is missing"),
        ({Q: np.ones((4, 64), np.float32)}, r"matrices of \[48, 4\] and \[4, 64\]"),
        ({Q.replace("0", "7"): np.ones((4, 48), np.float32)}, "adapts model.layers.7.self_attn.q_proj, which"),
        ({"base_model.model.lm_head.lora_A.weight": np.ones((4, 48), np.float32)}, "adapts lm_head, which"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": np.ones((4, 160), np.float32)}, "embed_tokens"),
        ({"base_model.model.model.norm.weight": np.ones(48, np.float32)}, "model.norm.weight, which is no LoRA matrix"),
    ],
)
def test_tensors_that_do_not_fit(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        read(write_adapter(tmp_path / "a", SPEC, changes=changes))


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", SPEC)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin, a pickle"):
        read(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        read(folder)


def test_what_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not there"):
        read(tmp_path / "nowhere")
    write_adapter(tmp_path / "run" / "checkpoint-300", SPEC)
    with pytest.raises(CheckpointError, match=r"it has no adapter_config\.json") as caught:
        read(tmp_path / "run")
    assert "checkpoint-300" in caught.value.hint
    folder = write_adapter(tmp_path / "damaged", SPEC)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        read(folder)
    folder = write_adapter(tmp_path / "cut", SPEC)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="cut short"):
        read(folder)
    folder = write_adapter(tmp_path / "empty", SPEC, modules=[])
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read(folder)


def test_scales(tmp_path: Path) -> None:
    """alpha / r, or alpha / √r; patterns of either; and the user's own."""
    target = "model.layers.1.mlp.down_proj"
    name = f"base_model.model.{target}.lora_"

    def delta(folder: str, scale: float = 1.0, **config: Any) -> tuple[np.ndarray, np.ndarray]:
        from safetensors.numpy import load_file

        written = load_file(write_adapter(tmp_path / folder, SPEC, **config) / "adapter_model.safetensors")
        found = read(tmp_path / folder, scale).deltas[target]
        return found.b @ found.a, written[name + "B.weight"] @ written[name + "A.weight"]

    for folder, factor, scale, config in (
        ("plain", 2.0, 1.0, {}), ("half", 1.0, 0.5, {}), ("rslora", 4.0, 1.0, {"use_rslora": True}),
        ("pattern", 5.0, 1.0, {"alpha_pattern": {"layers.1.mlp.down_proj": 20}}),
        ("another", 2.0, 1.0, {"alpha_pattern": {"layers.0.mlp.down_proj": 20, "proj": 9}}),
    ):  # fmt: skip
        found, product = delta(folder, scale, **config)
        np.testing.assert_allclose(found, factor * product, rtol=1e-4, atol=1e-6)


def test_a_scale_that_no_float_holds(tmp_path: Path) -> None:
    """It is a number, and what it makes of the matrices is none."""
    folder = write_adapter(tmp_path / "a", SPEC)
    for scale in (1e300, -1e39):
        with pytest.raises(CheckpointError, match="more than float32 holds"):
            read(folder, scale)
    assert all(not delta.b.any() for delta in read(folder, 0.0).deltas.values())


def test_its_digests_tell_all_that_decides(tmp_path: Path) -> None:
    """Another alpha beside the same weights is another adapter; and so is a scale a little off."""
    one, other = (read(write_adapter(tmp_path / name, SPEC)) for name in ("one", "other"))
    assert one.sha256 == other.sha256
    path = tmp_path / "other" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 16}))
    changed = read(tmp_path / "other").sha256
    assert {name for name, digest in changed.items() if digest != one.sha256[name]} == {"adapter_config.json"}
    labels = {scale: read(tmp_path / "one", scale).label for scale in (1.0, 2.0, 0.5, 0.1234567, 0.12345678)}
    assert list(labels.values()) == ["one", "one at 2", "one at 0.5", "one at 0.1234567", "one at 0.12345678"]


@pytest.mark.parametrize("modules", [HF, tuple(CHATGLM)])
def test_both_layouts_reach_every_matrix(modules: tuple[str, ...], tmp_path: Path) -> None:
    adapter = read(write_adapter(tmp_path / "a", SPEC, modules=modules))
    matrices = {name.removesuffix(".weight") for name in SPEC.tensor_shapes() if "proj.weight" in name}
    assert set(adapter.deltas) == matrices


def test_a_name_of_the_adapter_inside_the_tensors_names(tmp_path: Path) -> None:
    """Some trainers leave `.default` there."""
    value = np.ones((4, 48), np.float32)
    folder = write_adapter(tmp_path / "a", SPEC, changes={Q: None, Q.replace("A.weight", "A.default.weight"): value})
    assert (read(folder).deltas["model.layers.0.self_attn.q_proj"].a == value).all()


@pytest.mark.parametrize(
    ("base", "model", "told"),
    [
        ("THUDM/glm-4-9b-chat", "zai-org/glm-4-9b-chat-hf", False), ("", "zai-org/glm-4-9b-chat-hf", False),
        ("/data/my-model", "zai-org/glm-4-9b-chat-hf", False), ("THUDM/glm-4-9b", "pocket", False),
        ("THUDM/glm-4-9b", "zai-org/glm-4-9b-chat-hf", True),
    ],
)  # fmt: skip
def test_another_base_is_remarked(base: str, model: str, told: bool) -> None:
    remark = other_base(Config(Path("a"), base, 4, 8.0), model)
    assert (remark is not None) == told
    if remark:
        assert base in remark and model in remark


def test_config_as_gml4s_own_script_writes_it(tmp_path: Path) -> None:
    folder = write_adapter(
        tmp_path / "a", SPEC, modules=["self_attention.query_key_value"], rank=8, alpha=32, lora_dropout=0.1,
        inference_mode=True, auto_mapping=None, init_lora_weights=True, rank_pattern={}, alpha_pattern={},
    )  # fmt: skip
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8
    adapter = read(folder)
    assert adapter.config.scale_of("any") == 4 and len(adapter.deltas) == 3 * SPEC.num_layers
