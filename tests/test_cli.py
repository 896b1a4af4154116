"""Bad input at the command line: one sentence, a non-zero exit, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.cli import _run
from edge.commands.export import default_folder
from edge.files import HOME_VARIABLE
from edge.manifest import Manifest
from tests.conftest import write_checkpoint
from tests.laptops import write_model


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))


def fails(capsys: pytest.CaptureFixture[str], *argv: str, code: int, said: str) -> str:
    assert _run(list(argv)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err and "Traceback" not in err
    assert err.count("Error") == 1
    return err


def test_a_folder_that_is_no_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    fails(capsys, "export", str(tmp_path / "c"), str(tmp_path / "out"), code=1, said="is no checkpoint")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fails(capsys, "export", str(tmp_path / "nowhere"), code=1, said=f"there is no folder {tmp_path / 'nowhere'}")


def test_a_truncated_shard(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    fails(capsys, "export", str(folder), str(tmp_path / "out"), code=1, said="is cut short")
    assert not (tmp_path / "out").exists()


def test_a_config_that_is_not_glm(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen3"}))
    fails(capsys, "export", str(folder), str(tmp_path / "out"), code=1, said="of type 'qwen3', not GLM-4")


def test_a_group_size_that_does_not_divide(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", vocab_size=320)
    err = fails(capsys, "export", str(folder), str(tmp_path / "out"), "--group-size", "7", code=2, said="7")
    assert "48" in err
    assert not (tmp_path / "out").exists()


def test_a_ratio_that_is_no_share(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", vocab_size=320)
    fails(capsys, "export", str(folder), str(tmp_path / "out"), "--ratio", "1.5", code=2, said="1.5")


def test_a_recipe_the_npu_cannot_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", vocab_size=320)
    fails(capsys, "export", str(folder), str(tmp_path / "out"), "--for", "npu", "--asym", code=2, said="asym")


def test_an_output_folder_that_is_not_ours(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", vocab_size=320)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.docx").write_text("mine")
    fails(capsys, "export", str(folder), str(tmp_path / "out"), code=1, said="exists and holds something else")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.docx"]


def test_an_output_that_is_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    fails(capsys, "export", "pocket", str(tmp_path / "out"), code=1, said="is a file")
    assert (tmp_path / "out").read_text() == "mine"


def test_no_room_on_the_disk(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "c", vocab_size=320)
    monkeypatch.setattr("edge.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    fails(capsys, "export", str(folder), str(tmp_path / "out"), code=1, said="0.00 GB are free")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_on_the_way(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO does not say that the disk is full; it says "iostream error" (seen on a real small disk)."""
    folder = write_checkpoint(tmp_path / "c", vocab_size=320)

    def full(*args: object, **kwargs: object) -> None:
        monkeypatch.setattr("edge.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr("edge.export.tokenize.ov.save_model", full)
    fails(capsys, "export", str(folder), str(tmp_path / "out"), code=1, said="the disk filled up")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "home"]


def test_an_earlier_export_with_files_of_the_users_is_not_replaced(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "c", vocab_size=320, hidden_size=64, intermediate_size=128, head_dim=16)
    command = ["export", str(folder), str(tmp_path / "out"), "--weights", "bf16"]
    assert _run(command) == 0
    capsys.readouterr()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    fails(capsys, *command, code=1, said="holds something else (notes.txt)")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "edge.json").write_text('{"app": "mine"}')
    command[2] = str(tmp_path / "mine")
    fails(capsys, *command, code=1, said="holds something else (edge.json)")


@pytest.mark.parametrize("out", [".", "..", "x/.."])
def test_the_folder_one_is_in_is_not_replaced(
    out: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "c", vocab_size=320, hidden_size=64, intermediate_size=128, head_dim=16)
    (tmp_path / "here" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "x").rmdir()
    assert _run(["export", str(folder), out]) == 1
    err = capsys.readouterr().err
    assert "is the folder you are in" in err or "holds something else" in err


def test_a_path_under_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fails(capsys, "export", "pocket", str(tmp_path / "file" / "out"), code=1, said=f"{tmp_path / 'file'} is a file")


def test_bf16_from_another_format_is_refused_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from tests.model.test_checkpoint import edit_header

    folder = write_checkpoint(tmp_path / "c", vocab_size=320)
    edit_header(folder / "model.safetensors", "model.embed_tokens.weight", dtype="F16")
    fails(capsys, "export", str(folder), str(tmp_path / "out"), "--weights", "bf16", code=1 + 1, said="is in F16")


def test_an_unknown_option_value_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, "export", "pocket", "--weights", "int3", code=2, said="'int3' is not one of")


def test_the_same_export_is_not_made_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, out = write_checkpoint(tmp_path / "checkpoint", vocab_size=320), tmp_path / "out"
    command = ["export", str(folder), str(out), "--weights", "bf16"]

    def made() -> tuple[int, str, str]:
        assert _run(command) == 0
        captured = capsys.readouterr()
        assert captured.out.strip() == str(out)
        return (out / "edge.json").stat().st_mtime_ns, captured.err, captured.out

    first, err, _ = made()
    assert "Replacing" not in err and "already" not in err
    second, err, _ = made()
    assert second == first and f"in {out} already" in err and "--force" in err and "checked" not in err
    command.append("--force")
    third, err, _ = made()
    assert third > first and f"Replacing the earlier export in {out}" in err
    command[-1] = "--group-size"  # a fault is met all the same
    assert _run([*command, "7"]) == 2
    command[-1:] = ["--for", "gpu"]  # another recipe, though its fields are the same
    assert _run(command) == 1
    assert "exported for cpu, not for igpu" in capsys.readouterr().err and Manifest.read(out).target == "cpu"
    command.append("--force")
    fourth, err, _ = made()
    assert fourth > third and "Replacing" in err and Manifest.read(out).target == "igpu"
    command.pop()
    write_checkpoint(folder, seed=1, vocab_size=320)
    fifth, err, _ = made()
    assert fifth > fourth and "Replacing" in err


def test_an_export_says_what_it_proved(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", vocab_size=320, hidden_size=64, intermediate_size=128, head_dim=16)
    assert _run(["export", str(folder), str(tmp_path / "out"), "--weights", "int8", "--json"]) == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert made["folder"] == str(tmp_path / "out")
    assert {check["name"] for check in made["checks"]} >= {"tokenizer", "graph parity", "weights", "fusions"}
    assert made["stop_ids"] == [1, 2] and made["stop_tokens"] == ["<|end|>", "<|user|>"]
    assert set(made["source"]["sha256"]) == {
        "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"
    }  # fmt: skip
    assert "proving the result" in err
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "home", "out"]


def test_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", vocab_size=320, hidden_size=64, intermediate_size=128, head_dim=16)
    for weights in ("bf16", "int8"):
        assert _run(["export", str(folder), str(tmp_path / "out"), "--weights", weights]) == 0
    assert json.loads((tmp_path / "out" / "edge.json").read_text())["recipe"]["weights"] == "int8"


@pytest.mark.skipif(sys.platform == "win32", reason="a console's Ctrl-C cannot be sent to one process there")
@pytest.mark.parametrize("stage", ["checking the graph", "proving the result"])
def test_ctrl_c_leaves_nothing(tmp_path: Path, stage: str) -> None:
    folder = write_checkpoint(tmp_path / "c", vocab_size=320, hidden_size=64, intermediate_size=128, head_dim=16)
    # The child pauses in the stage, so that the signal cannot come too late.
    script = (
        "import time, edge.cli, edge.export.pipeline as p\nrun = p.run\n"
        "def slow(job, progress):\n"
        "    def pause(stage, done, total):\n"
        "        progress(stage, done, total)\n"
        f"        if stage == {stage!r}: time.sleep(60)\n"
        "    return run(job, pause)\n"
        "p.run = slow\n"
        f"edge.cli.main(['export', {str(folder)!r}, {str(tmp_path / 'out')!r}, '--weights', 'int8'])\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, env=os.environ.copy())
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith(stage):
            break
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=30) == 130
    assert "Interrupted" in child.stderr.read()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "home"]


def test_exports_by_name_have_one_place_each(tmp_path: Path) -> None:
    (tmp_path / "a" / "model").mkdir(parents=True)
    (tmp_path / "b" / "model").mkdir(parents=True)
    first, second = (default_folder(str(tmp_path / name / "model"), "cpu") for name in "ab")
    assert first != second and first.parent == second.parent == tmp_path / "home" / "models"
    assert default_folder("zai-org/glm-4-9b-chat-hf", "npu").name == "zai-org--glm-4-9b-chat-hf-int4-npu"
    assert default_folder("pocket", "cpu").name == "pocket-int4-cpu"


@pytest.mark.model
def test_an_export_never_imports_torch(pocket_dir: Path) -> None:
    """The fixture's export would have failed; here, that PyTorch could have been imported at all."""
    pytest.importorskip("torch")
    assert (pocket_dir / "edge.json").is_file()


def test_hiding_torch_hides_it_from_transformers() -> None:
    pytest.importorskip("torch")
    script = (
        "import sys\nfrom edge.commands.export import without_torch\n"
        "with without_torch():\n"
        "    from transformers.utils import is_torch_available\n"
        "    hidden = not is_torch_available()\n"
        "import torch\n"
        "sys.exit(0 if hidden and torch.ones(1).item() == 1 else 1)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120).returncode == 0


def test_what_the_outputs_encoding_lacks_does_not_end_a_command(tmp_path: Path) -> None:
    """As `glm4-edge plan DIR > report.txt` is on Windows; the folder's name is in the report."""
    folder = tmp_path / "模型 é"
    write_model(folder)
    command = [sys.executable, "-m", "edge", "plan", str(folder), "--memory", "16GB"]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"}, timeout=60)
    assert done.returncode == 0 and done.stderr == b""
    assert "?? é, on CPU".encode("cp1252") in done.stdout


def test_a_stream_with_its_own_way_to_write_them_keeps_it() -> None:
    script = (
        "import sys\nfrom edge import cli\ncli._run = lambda argv: print(sys.stdout.errors, sys.stderr.errors)\n"
        "cli.main()"
    )
    for errors, kept in (("surrogateescape", "surrogateescape"), ("strict", "replace")):
        env = os.environ | {"PYTHONIOENCODING": f"utf-8:{errors}"}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=60)
        assert done.stdout.split() == [kept, "backslashreplace"]
