"""edge.json is read back as written, and a damaged one is a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge import manifest
from edge.errors import ModelError


def example() -> manifest.Manifest:
    return manifest.Manifest(
        format=manifest.FORMAT,
        created="2026-01-01T00:00:00+00:00",
        source=manifest.Source(model="pocket", description=None, revision=None, sha256={}),
        architecture=manifest.Architecture(
            model_type="glm", parameters=1, num_layers=1, num_kv_heads=1, head_dim=2, vocab_size=4, context_length=8
        ),
        target="cpu",
        recipe={},
        stop_ids=[1],
        stop_tokens=["<|end|>"],
        versions={},
        bytes={"openvino_model.bin": 3},
        checks=[manifest.Check(name="weights", passed=True, figures={"share": 0.5})],
    )


def test_round_trip(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.bin").write_bytes(b"abc")
    example().write(tmp_path)
    assert manifest.Manifest.read(tmp_path) == example()


def test_a_file_that_lost_bytes(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.bin").write_bytes(b"ab")
    example().write(tmp_path)
    with pytest.raises(ModelError, match=r"openvino_model\.bin is missing or does not have its 3 bytes"):
        manifest.Manifest.read(tmp_path)


def test_a_tokenizer_that_is_not_what_was_written(tmp_path: Path) -> None:
    """Of the same size: OpenVINO would crash on some, and answer in nonsense with others."""
    for name in ("openvino_model.bin", "openvino_detokenizer.bin"):
        (tmp_path / name).write_bytes(b"abc")
    made = example().model_copy(update={"sha256": manifest.digests(tmp_path)})
    assert list(made.sha256) == ["openvino_detokenizer.bin"]
    made.write(tmp_path)
    assert manifest.Manifest.read(tmp_path) == made
    (tmp_path / "openvino_detokenizer.bin").write_bytes(b"abd")
    with pytest.raises(ModelError, match=r"openvino_detokenizer\.bin is not what the export wrote"):
        manifest.Manifest.read(tmp_path)


def test_an_older_export_has_no_digests(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.bin").write_bytes(b"abc")
    value = json.loads(example().model_dump_json())
    del value["sha256"]
    (tmp_path / manifest.FILE_NAME).write_text(json.dumps(value))
    assert manifest.Manifest.read(tmp_path) == example()


def test_an_export_keeps_those_of_its_tokenizer(tiny_npu: Path) -> None:
    assert sorted(manifest.Manifest.read(tiny_npu).sha256) == sorted(manifest.TOKENIZER_FILES)


@pytest.mark.parametrize("content", ["", "{}", "[]", "{", '{"format": 1}'])
def test_a_damaged_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / manifest.FILE_NAME).write_text(content)
    with pytest.raises(ModelError, match="damaged or from another version"):
        manifest.Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("place", "name", "number"),
    [
        *(("architecture", name, 0) for name in ("parameters", "num_layers", "num_kv_heads", "head_dim")),
        ("architecture", "context_length", -1), ("architecture", "vocab_size", 10**400),
        (None, "stop_ids", [-3]), (None, "stop_ids", [2**70]), (None, "bytes", {"a": -1}),
    ],
)  # fmt: skip
def test_numbers_that_no_model_has(tmp_path: Path, place: str | None, name: str, number: object) -> None:
    value = json.loads(example().model_dump_json())
    (value if place is None else value[place])[name] = number
    (tmp_path / manifest.FILE_NAME).write_text(json.dumps(value))
    with pytest.raises(ModelError, match=rf"damaged or from another version \(.*{name}.* should be"):
        manifest.Manifest.read(tmp_path)


def test_a_manifest_of_another_format(tmp_path: Path) -> None:
    value = json.loads(example().model_dump_json())
    (tmp_path / manifest.FILE_NAME).write_text(json.dumps({**value, "format": 99}))
    with pytest.raises(ModelError, match="has format 99"):
        manifest.Manifest.read(tmp_path)


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no exported model") as caught:
        manifest.Manifest.read(tmp_path)
    assert "glm4-edge export" in caught.value.hint
