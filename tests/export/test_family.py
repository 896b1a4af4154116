"""Every published layout of the same weights becomes the same model, through the command a user types."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from edge.cli import _run
from edge.files import HOME_VARIABLE
from edge.infer import EXACT, infer
from edge.model.checkpoint import Checkpoint
from tests.conftest import split_into_shards, write_chatglm, write_checkpoint, write_safetensors

STOPS = [151329, 151336, 151338]
IDS = np.arange(3, 40)
SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8,
                         "head_dim": 8}  # fmt: skip


def rope(ratio: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4 * ratio, "partial_rotary_factor": 0.5}


# As published: KV groups, ratio, context.
MODELS: dict[str, dict[str, Any]] = {
    "glm-4-9b": {"num_key_value_heads": 2, "rope_parameters": rope(1), "max_position_embeddings": 8192},
    "glm-4-9b-chat": {"num_key_value_heads": 2, "rope_parameters": rope(500), "max_position_embeddings": 131072},
    "glm-4-9b-chat-1m": {"num_key_value_heads": 4, "rope_parameters": rope(10000), "max_position_embeddings": 1048576},
    "tied": {"num_key_value_heads": 2, "rope_parameters": rope(500), "tie_word_embeddings": True},
}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))


def export(checkpoint: Path, *options: str) -> Path:
    out = checkpoint.with_name(f"{checkpoint.name}-out")
    assert _run(["export", str(checkpoint), str(out), *(options or ("--weights", "bf16"))]) == 0
    return out


def logits(folder: Path) -> np.ndarray:
    return infer(ov.Core().compile_model(folder / "openvino_model.xml", "CPU", EXACT), IDS, 0)


def transformers_logits(checkpoint: Path) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        out: np.ndarray = model(torch.tensor(IDS[None])).logits[0].numpy()
    return out


@pytest.mark.parametrize(
    ("name", "weights"), [*((name, "bf16") for name in MODELS), ("glm-4-9b-chat", "int4"), ("glm-4-9b-chat-1m", "int4")]
)
def test_chatglm_and_glm_export_to_one_model(name: str, weights: str, tmp_path: Path) -> None:
    """The same bytes of weights, the same logits bit by bit, and in bf16 those of transformers."""
    glm = write_checkpoint(tmp_path / "glm", **SIZES, **MODELS[name])
    chatglm = write_chatglm(tmp_path / "chatglm", glm)
    split_into_shards(chatglm, 3)
    options = ["--weights", weights, *(["--group-size", "32", "--ratio", "1"] if weights == "int4" else [])]
    first, second = (export(folder, *options) for folder in (glm, chatglm))
    assert (first / "openvino_model.bin").read_bytes() == (second / "openvino_model.bin").read_bytes()
    np.testing.assert_array_equal(logits(first), logits(second))
    if weights == "bf16":
        expected = transformers_logits(glm)
        np.testing.assert_allclose(logits(second), expected, atol=1e-4 * np.abs(expected).max())
    made = [json.loads((folder / "edge.json").read_text())["architecture"] for folder in (first, second)]
    assert made[0] == made[1] | {"model_type": "glm"} and made[1]["model_type"] == "chatglm"
    assert made[1]["context_length"] == MODELS[name].get("max_position_embeddings", 256)


def test_the_ratio_and_the_groups_matter(tmp_path: Path) -> None:
    """Otherwise the test above could not fail."""
    glm = write_checkpoint(tmp_path / "glm", **SIZES, **MODELS["glm-4-9b-chat"])
    config = json.loads((glm / "config.json").read_text())
    before = transformers_logits(glm)
    (glm / "config.json").write_text(json.dumps({**config, "rope_parameters": rope(1)}))
    assert np.abs(transformers_logits(glm) - before).max() > 0.01 * np.abs(before).max()


def test_glm4_is_glm_where_its_extra_norms_do_nothing(tmp_path: Path) -> None:
    """A norm on the way out of a block divides by its root mean square, so it cannot be 1 in general.

    Under an epsilon far above every mean square it divides by a constant, which its weight takes back. Both
    layouts are given that epsilon, and larger weights in the norms that both have.
    """
    epsilon, root = 2.0**40, 2.0**20
    glm = write_checkpoint(tmp_path / "glm", **SIZES, **MODELS["glm-4-9b-chat"], rms_norm_eps=epsilon)
    checkpoint = Checkpoint(glm)
    tensors = {name: np.array(checkpoint.weight(name).raw) for name in checkpoint.spec.tensor_shapes()}
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name] = bf16(checkpoint.weight(name).f32() * root)
    del checkpoint
    write_safetensors(glm / "model.safetensors", tensors)
    glm4 = tmp_path / "glm4"
    shutil.copytree(glm, glm4)
    for i in range(2):
        for norm in ("post_self_attn_layernorm", "post_mlp_layernorm"):
            tensors[f"model.layers.{i}.{norm}.weight"] = bf16(np.full(64, root, np.float32))
    write_safetensors(glm4 / "model.safetensors", tensors)
    config = json.loads((glm / "config.json").read_text())
    config |= {"model_type": "glm4", "architectures": ["Glm4ForCausalLM"]}
    (glm4 / "config.json").write_text(json.dumps(config))
    expected = logits(export(glm))
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(logits(export(glm4)), expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(transformers_logits(glm4), expected, atol=1e-4 * np.abs(expected).max())


def bf16(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) >> 16).astype("<u2")


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize("scaling", [None, YARN], ids=["plain", "yarn"])
@pytest.mark.parametrize("groups", [2, 4])
def test_glm4_equals_transformers(groups: int, scaling: dict[str, Any] | None, tmp_path: Path) -> None:
    """As GLM-4-9B-0414 is published: keys of an older transformers, eps 1e-5, shards."""
    folder = write_checkpoint(
        tmp_path / "glm4", **SIZES, model_type="glm4", architectures=["Glm4ForCausalLM"], rope_parameters=None,
        rope_theta=10000.0, partial_rotary_factor=0.5, rms_norm_eps=1e-5, num_key_value_heads=groups,
        max_position_embeddings=16 if scaling else 256, rope_scaling=scaling,
    )  # fmt: skip
    expected = transformers_logits(folder)
    split_into_shards(folder, 4)
    out = export(folder)
    np.testing.assert_allclose(logits(out), expected, atol=1e-4 * np.abs(expected).max())
    assert json.loads((out / "edge.json").read_text())["architecture"]["context_length"] == (64 if scaling else 256)


def test_a_folder_as_modelscope_leaves_it(tmp_path: Path) -> None:
    """Its own records lie beside the checkpoint; none of them is read or passed on."""
    write_checkpoint(tmp_path / "glm", **SIZES, **MODELS["glm-4-9b-chat"])
    folder = write_chatglm(tmp_path / "ZhipuAI" / "glm-4-9b-chat", tmp_path / "glm")
    split_into_shards(folder)
    (folder / "configuration.json").write_text('{"framework":"Pytorch","task":"nli"}')
    for name in (".msc", ".mdl", ".mv"):
        (folder / name).write_bytes(b"\x80\x04pickle")
    for name in ("modeling_chatglm.py", "tokenization_chatglm.py", "configuration_chatglm.py"):
        (folder / name).write_text("raise SystemExit('remote code ran')")
    (folder / "._____temp").mkdir()
    (folder / "._____temp" / "model-00001-of-00002.safetensors").write_bytes(b"half")
    out = export(folder)
    assert not [path.name for path in out.iterdir() if path.name.startswith((".", "configuration"))]
    assert not list(out.glob("*.py"))


def test_remote_code_is_neither_run_nor_asked_for(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "glm", **SIZES, **MODELS["glm-4-9b-chat"])
    folder = write_chatglm(tmp_path / "chatglm", tmp_path / "glm")
    for name, key in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        value = json.loads((folder / name).read_text())
        value["auto_map"] = {key: ["remote.Thing", None] if "token" in name else "remote.Thing"}
        (folder / name).write_text(json.dumps(value))
    (folder / "remote.py").write_text("raise SystemExit('remote code ran')")
    out = export(folder)
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((out / name).read_text())
    from transformers import AutoConfig, AutoTokenizer

    assert AutoConfig.from_pretrained(out).model_type == "glm"
    assert AutoTokenizer.from_pretrained(out)("ab")["input_ids"]


# What real folders hold ---------------------------------------------------------------------------


@pytest.fixture(
    params=["chatglm", pytest.param("glm", marks=pytest.mark.heavy), pytest.param("glm4", marks=pytest.mark.heavy)]
)
def real_tokenizer(request: pytest.FixtureRequest, shared_data: Path, tmp_path: Path) -> Path:
    """A tiny model with GLM-4's own tokenizer, template and stop ids, in each layout."""
    sizes = {**SIZES, "vocab_size": 151552, "hidden_size": 32, "intermediate_size": 64, "head_dim": 4}
    sizes |= {"num_hidden_layers": 1, "num_key_value_heads": 2, "rope_parameters": rope(500)}
    kind = request.param
    changes = {"model_type": "glm4", "architectures": ["Glm4ForCausalLM"]} if kind == "glm4" else {}
    folder = write_checkpoint(tmp_path / "glm", **{**sizes, **changes}, eos_token_id=STOPS, pad_token_id=STOPS[0])
    source = shared_data / "glm4-tokenizer"
    if kind == "chatglm":
        folder = write_chatglm(tmp_path / "chatglm", folder)
        (folder / "tokenizer.json").unlink()
        names = ["tokenizer.model", "tokenizer_config.json"]
    else:
        names = ["tokenizer.json", "tokenizer_config.json"]
    for name in names:
        shutil.copyfile(source / name, folder / name)
    shutil.copyfile(source / "hf-config" / "generation_config.json", folder / "generation_config.json")
    if kind == "glm4":
        published = json.loads((source / "chat_templates" / "xinference-4.1.0.glm4-0414.json").read_text("utf-8"))
        (folder / "chat_template.jinja").write_text(published[0]["chat_template"], "utf-8")
    return folder


TOOL = {"type": "function", "function": {"name": "get_weather", "description": "天气", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}  # fmt: skip
HISTORIES: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "你好"}],
    [{"role": "system", "content": "You are X."}, {"role": "user", "content": "Hi"},
     {"role": "assistant", "content": "Hello!\n"}, {"role": "user", "content": "Bye 👋🏽"}],
    [{"role": "system", "content": "", "tools": [TOOL]}, {"role": "user", "content": "Weather in SF?"},
     {"role": "assistant", "metadata": "get_weather", "content": '{"city": "SF"}'},
     {"role": "observation", "content": '{"temp": 23}'}],
]  # fmt: skip


@pytest.mark.slow
def test_the_template_the_prefix_and_the_stop_ids(real_tokenizer: Path) -> None:
    """As the runtime reads them: GenAI's tokenizer of the exported folder, with no special tokens added."""
    import openvino_genai
    from transformers import AutoTokenizer

    from edge.model import tokenizer as tokenizers

    out = export(real_tokenizer)
    reference = tokenizers.load(real_tokenizer)
    ours = openvino_genai.Tokenizer(str(out))
    prefix = reference.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    assert prefix == [151331, 151333]
    for history in HISTORIES:
        expected = reference.apply_chat_template(history, tokenize=False, add_generation_prompt=True)
        rendered = ours.apply_chat_template(openvino_genai.ChatHistory(history), add_generation_prompt=True)
        assert rendered == expected
        ids = ours.encode(rendered, add_special_tokens=False).input_ids.data[0].tolist()
        assert ids == reference(expected, add_special_tokens=False)["input_ids"]
        assert ids[:2] == prefix and ids.count(prefix[0]) == ids.count(prefix[1]) == 1
    plain = ours.encode("What is the capital of France?", add_special_tokens=True).input_ids.data[0].tolist()
    assert plain[:2] == prefix and plain.count(prefix[0]) == plain.count(prefix[1]) == 1
    bare = ours.encode("What is the capital of France?", add_special_tokens=False).input_ids.data[0].tolist()
    assert bare == plain[2:]
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == STOPS and generation["temperature"] == generation["top_p"] == 0.8
    assert json.loads((out / "edge.json").read_text())["stop_tokens"] == [
        "<|endoftext|>",
        "<|user|>",
        "<|observation|>",
    ]
    again = AutoTokenizer.from_pretrained(out)
    assert again.apply_chat_template(HISTORIES[1], tokenize=False) == reference.apply_chat_template(
        HISTORIES[1], tokenize=False
    )
