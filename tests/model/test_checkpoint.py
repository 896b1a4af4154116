"""Safetensors by memory map: right values, and a sentence for everything that can be wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from edge.errors import CheckpointError
from edge.model.checkpoint import Checkpoint, Weight
from tests.conftest import split_into_shards, write_checkpoint


def test_values_equal_what_the_safetensors_package_reads(tiny: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    checkpoint = Checkpoint(tiny)
    for name, expected in load_file(tiny / "model.safetensors").items():
        assert expected.dtype == torch.bfloat16
        np.testing.assert_array_equal(checkpoint.weight(name).f32(), expected.float().numpy())


def test_tensors_are_views_of_the_file(tiny: Path) -> None:
    raw = Checkpoint(tiny).weight("model.embed_tokens.weight").raw
    base = raw
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap) and not raw.flags.writeable


def test_f16_and_f32_are_read(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0, 65504.0], np.float32)
    assert Weight(values.astype(np.float16), "F16").f32().tolist() == values.tolist()
    assert Weight(values, "F32").f32().tolist() == values.tolist()


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    before = Checkpoint(folder).weight("lm_head.weight").f32()
    split_into_shards(folder)
    checkpoint = Checkpoint(folder)
    assert len(checkpoint.shards) == 2
    np.testing.assert_array_equal(checkpoint.weight("lm_head.weight").f32(), before)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    split_into_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 2 shards are missing, model-00002-of-00002"):
        Checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1, -1000])
def test_a_truncated_shard_is_named(tmp_path: Path, keep: int) -> None:
    path = write_checkpoint(tmp_path / "c") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is cut short"):
        Checkpoint(tmp_path / "c")


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "c") / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged header"):
        Checkpoint(tmp_path / "c")


def test_no_weights_at_all(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        Checkpoint(folder)


@pytest.mark.parametrize("other", ["pytorch_model-00001-of-00004.bin", "glm-4-9b-chat.Q4_K_M.gguf", "model.pth"])
def test_weights_of_another_format_are_named(tmp_path: Path, other: str) -> None:
    folder = write_checkpoint(tmp_path / "c")
    (folder / "model.safetensors").rename(folder / other)
    with pytest.raises(CheckpointError, match=f"holds its weights as {other}, which is not read"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "model.bin", "", "..",
             "C:x.safetensors"]
)  # fmt: skip
def test_an_index_that_points_elsewhere(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "c")
    split_into_shards(folder)
    (tmp_path / "x.safetensors").write_bytes((folder / "model-00001-of-00002.safetensors").read_bytes())
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"is no \*\.safetensors file of that folder"):
        Checkpoint(folder)


def edit_header(path: Path, name: str, **changes: object) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header[name].update(changes)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "I8", "shape": [96]}, "of type I8"),
        ({"dtype": "F8_E4M3", "shape": [96]}, "of type F8_E4M3, not BF16, F16 or F32"),
        ({"shape": [24]}, "does not fill its place"),
        ({"shape": [2, 24]}, r"has shape \[2, 24\], but config.json asks for \[48\]"),
    ],
)
def test_a_tensor_of_another_kind(tmp_path: Path, change: dict[str, object], said: str) -> None:
    folder = write_checkpoint(tmp_path / "c")
    edit_header(folder / "model.safetensors", "model.norm.weight", **change)
    with pytest.raises(CheckpointError, match=said):
        Checkpoint(folder)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", attention_bias=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_bias": True}))
    with pytest.raises(CheckpointError, match=r"the tensor model\.layers\.0\.self_attn\.q_proj\.bias is missing"):
        Checkpoint(folder)


def test_tensors_of_another_architecture_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_bias": False}))
    with pytest.raises(CheckpointError, match="6 tensors are none of GLM-4's"):
        Checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    split_into_shards(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    first, second = sorted(set(index["weight_map"].values()))
    third = second.replace("00002", "00003", 1)
    (folder / third).write_bytes((folder / first).read_bytes())
    index["weight_map"]["more"] = third
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="which another shard holds, too"):
        Checkpoint(folder)
