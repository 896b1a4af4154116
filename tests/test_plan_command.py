"""`glm4-edge plan`, on a tiny exported model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge.cli import _run


@pytest.fixture
def folder(plain_export: Path) -> Path:
    return plain_export


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    memory = SimpleNamespace(total=16_000_000_000, available=11_000_000_000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr("edge.runtime.machine.Machine.memory_limit", lambda self: None)
    return memory


def test_a_containers_memory_and_processors_are_what_there_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edge.runtime.machine.Machine.memory_limit", lambda self: 2_000_000_000)
    monkeypatch.setattr("edge.runtime.machine.Machine.memory_used_of_limit", lambda self: 500_000_000)
    monkeypatch.setattr("edge.runtime.machine.Machine.processor_limit", lambda self: 0.5)
    assert _run(["plan", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["total_bytes"], facts["available_bytes"]) == (2_000_000_000, 1_500_000_000)
    assert facts["threads"] == 1


def test_the_npu_has_a_default_of_its_own(tiny_npu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert _run(["plan", str(tiny_npu), "--device", "NPU", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["context"] == 256, "all that this model reads, and not 1,152"


@pytest.mark.parametrize("device", ["NPU", "HETERO:GPU,NPU"])
def test_what_the_npu_does_not_take_is_refused_as_at_a_run(
    device: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["plan", str(folder), "--device", device, "--memory", "16GB"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "exported for cpu" in err and "--for npu" in err


def test_a_context_without_room_for_a_prompt_on_the_npu(tiny_npu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert _run(["plan", str(tiny_npu), "--device", "NPU", "--context", "150"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "leaves the NPU no room for a prompt" in err and "at least 192" in err
    assert _run(["plan", str(tiny_npu), "--device", "NPU", "--context", "192"]) == 0


@pytest.mark.parametrize(("device", "planned"), [("auto", "CPU"), ("hetero:gpu,cpu", "HETERO:GPU,CPU")])
def test_devices_that_a_chat_takes(
    device: str, planned: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.runtime.devices.available", lambda: ["CPU"])
    assert _run(["plan", str(folder), "--device", device, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == planned


def test_what_fits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["plan", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "256 tokens" in out and "verdict    yes" in out and err == ""
    assert _run(["plan", str(folder), "--context", "128", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    parts = ("program_bytes", "repacked_bytes", "kv_bytes", "working_bytes")
    assert facts["needed_bytes"] == sum(facts[part] for part in parts)
    assert facts["context"] == 128 and facts["fits"] and facts["advice"] == [] and facts["available_bytes"] == 11e9
    assert facts["prefill_seconds"] is None  # nobody measured it
    assert facts["kv_bytes"] == 2 * 2 * 128 * (2 * 8 + 8 * (8 / 32 + 1))


def test_what_does_not_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["plan", str(folder), "--context", "4096"]) == 1
    out, err = capsys.readouterr()
    assert "verdict    no: the model reads at most 256" in out
    assert "Error: the model reads at most 256" in err and "--context 256" in err
    command = [
        "plan",
        str(folder),
        "--context",
        "256",
        "--kv-precision",
        "f32",
        "--memory",
        "111.9MB",
        "--threads",
        "1",
    ]
    assert _run([*command, "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert not facts["fits"] and "112 MB" in facts["verdict"]
    assert _run([*command[:-3], "1MB"]) == 1
    assert "Not even the weights fit" in capsys.readouterr().err


def test_a_smaller_cache_is_advised(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["plan", str(folder), "--context", "256", "--threads", "1", "--json"]
    need = {}
    for precision in ("f32", "u8"):
        _run([*base, "--kv-precision", precision])
        need[precision] = json.loads(capsys.readouterr().out)["needed_bytes"]
    between = (need["f32"] + need["u8"]) // 2
    assert _run([*base, "--kv-precision", "f32", "--memory", f"{between}B"]) == 1
    advice = json.loads(capsys.readouterr().out)["advice"]
    assert advice[0].startswith("As it is, --context ")
    longest = int(advice[0].split()[4])
    assert _run(["plan", str(folder), "--context", str(longest), "--threads", "1", "--kv-precision", "f32",
                 "--memory", f"{between}B"]) == 0  # fmt: skip
    assert any("--kv-precision u8" in sentence and "and fit" in sentence for sentence in advice)
    assert any("eviction" in sentence for sentence in advice)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--memory", "16"], 2, "Write it as 16GB"),
        (["--memory", "lots"], 2, "'lots'"), (["--memory", "0GB"], 2, "'0GB'"), (["--device", "TPU"], 1, "'TPU'"),
        (["--device", "NPU", "--kv-precision", "u4"], 2, "f16"), 
        (["--device", "GPU", "--kv-precision", "f32"], 2, "u8"), (["--context", "0"], 2, "--context"),
        (["--context", "9" * 400], 2, "--context"), (["--threads", "9" * 400], 2, "--threads"),
        (["--memory", "9" * 400], 2, "no amount of memory"), (["--memory", "0.0001KB"], 2, "no amount of memory"),
    ],
)  # fmt: skip
def test_wrong_use(folder: Path, options: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["plan", str(folder), *options]) == code
    assert said in capsys.readouterr().err


def test_other_devices_say_what_is_assumed(tiny_npu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["plan", str(tiny_npu), "--device", "npu", "--memory", "16 GiB"]) == 0
    out = capsys.readouterr().out
    assert "assumed" in out and "in f16" in out and "17.18 GB" in out


def test_a_folder_that_holds_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["plan", str(tmp_path)]) == 1
    assert "holds no exported model" in capsys.readouterr().err


@pytest.mark.parametrize("number", [0, -1, "x", 10**400, None, 1e999])
def test_a_config_with_numbers_that_no_model_has(
    folder: Path, number: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_attention_heads": number}))
    assert _run(["plan", str(tmp_path / "model")]) == 1
    assert "config.json does not give the model's sizes (num_attention_heads is" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["u8", "u4", "f16"])
def test_a_table_says_what_its_words_mean(pocket_dir: Path, precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["plan", str(pocket_dir), "--context", "1024", "--kv-precision", precision]) == 0
    told = capsys.readouterr().out
    assert f"in {precision}, {precision[1:]} bits a number" in told
    assert "for what the model keeps of each token it has read" in told and "TFLOP" not in told
