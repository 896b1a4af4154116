"""config.json → GlmSpec, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.errors import CheckpointError, UnsupportedModelError
from edge.model.spec import GlmSpec
from tests.conftest import TINY_CONFIG


def test_reads_both_ways_of_writing_rope() -> None:
    new = GlmSpec.from_config(TINY_CONFIG)
    old = {**TINY_CONFIG, "rope_parameters": None, "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    assert GlmSpec.from_config(old) == new
    assert new.rotary_dim == 4 and new.stop_ids == (1, 2)


def test_counts_the_parameters_of_glm_4_9b() -> None:
    spec = GlmSpec("glm", 151552, 4096, 13696, 40, 32, 2, 128, 64, 5e6, 1.5625e-07, True, False, 131072, (151329,))
    assert spec.parameter_count() == 9_399_951_360  # the published size


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "of type 'llama', not GLM-4"),
        ({"model_type": None}, "names no model_type"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantised (gptq)"),
        ({"quantization_config": {"quant_method": "awq"}}, "already quantised (awq)"),
        ({"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}, "already quantised (fp8)"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "already quantised (bitsandbytes)"),
        ({"model_type": "glm4_moe"}, "of type 'glm4_moe', not GLM-4"),
        ({"model_type": "glm4v", "vision_config": {"depth": 24}}, "is a vision model"),
        ({"quantization_config": "int4"}, "already quantised (int4)"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2}}, "RoPE scaling that is not understood"),
        ({"vision_config": {}, "max_position_embeddings": 131072}, "RoPE base 10000"),
    ],
)
def test_another_kind_of_model_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        GlmSpec.from_config({**TINY_CONFIG, **change})
    assert said in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": "48"}, "hidden_size is '48'"),
        ({"num_key_value_heads": 4}, "must divide the 6 attention heads"),
        ({"rope_parameters": {"partial_rotary_factor": 2.0}}, "partial_rotary_factor is 2.0"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0"),
        ({"rope_parameters": {"rope_theta": "big"}}, "rope_theta is 'big'"),
        ({"rope_parameters": {"partial_rotary_factor": "x"}}, "partial_rotary_factor is 'x'"),
        ({"rope_parameters": [1]}, "rope_parameters is [1]"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
        ({"rms_norm_eps": "abc"}, "rms_norm_eps is 'abc'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
    ],
)
def test_a_value_that_cannot_be_is_blamed(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        GlmSpec.from_config({**TINY_CONFIG, **change})
    assert said in caught.value.message


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no checkpoint: it has no config\.json"):
        GlmSpec.from_folder(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_a_config_that_is_no_json_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        GlmSpec.from_folder(tmp_path)
