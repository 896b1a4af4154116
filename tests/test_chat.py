"""`glm4-edge chat` as a user runs it: the real pocket model in a process of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli import _run
from edge.errors import ModelError
from edge.files import HOME_VARIABLE
from tests.conftest import write_checkpoint

pytestmark = pytest.mark.model
QUESTION = "What is the capital of France?"


def chat(*argv: str, text: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONUTF8": "1"} | ({HOME_VARIABLE: str(home)} if home else {})
    command = [sys.executable, "-m", "edge", "chat", *argv]
    return subprocess.run(command, input=text, capture_output=True, encoding="utf-8", timeout=300, env=env)


def test_a_piped_question_prints_the_answer_alone(pocket_dir: Path) -> None:
    done = chat(str(pocket_dir), "--temperature", "0", text=QUESTION)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert done.stdout.endswith("\n") and len(done.stdout.splitlines()) == 1
    assert "<|" not in done.stdout
    last = done.stderr.splitlines()[-1]
    assert last.startswith("TTFT ") and "tokens/s" in last


def test_greedy_and_seeded_runs_are_repeatable(pocket_dir: Path) -> None:
    for options in (["--temperature", "0"], ["--temperature", "1", "--seed", "5"]):
        first, second = (
            chat(str(pocket_dir), *options, "--max-new-tokens", "24", text="Tell me about rivers.") for _ in range(2)
        )
        assert first.stdout == second.stdout and first.stdout.strip()


def test_chinese_and_emoji_come_out_whole(pocket_dir: Path) -> None:
    done = chat(
        str(pocket_dir), "--temperature", "0", "--max-new-tokens", "40", text="Repeat after me: 你好，世界 😀👍🏽"
    )
    assert done.returncode == 0 and "\ufffd" not in done.stdout


def test_a_model_exported_by_name_is_found_by_name(pocket_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    try:
        (tmp_path / "models" / "pocket-int4-cpu").symlink_to(pocket_dir, target_is_directory=True)
    except OSError:
        pytest.skip("symbolic links need a privilege on this Windows")
    done = chat("pocket", "--temperature", "0", text=QUESTION, home=tmp_path)
    assert "Paris" in done.stdout and "not exported yet" not in done.stderr


def test_an_unknown_device_names_those_there_are(pocket_dir: Path) -> None:
    done = chat(str(pocket_dir), "--device", "TPU", text=QUESTION)
    assert done.returncode == 1 and done.stdout == ""
    assert "'TPU' is no device" in done.stderr and "CPU" in done.stderr


def test_a_device_that_is_not_here(pocket_dir: Path) -> None:
    done = chat(str(pocket_dir), "--device", "GPU.7", "--temperature", "0", text=QUESTION)
    assert done.returncode == 0 and "Paris" in done.stdout
    assert "GPU.7 → CPU: this machine has no GPU.7" in done.stderr
    done = chat(str(pocket_dir), "--device", "GPU.7", "--no-fallback", text=QUESTION)
    assert done.returncode == 1 and done.stdout == "" and "has no GPU.7" in done.stderr


def test_a_prompt_beyond_the_context(pocket_dir: Path) -> None:
    done = chat(str(pocket_dir), text="word " * 9000)
    assert done.returncode == 1 and done.stdout == ""
    assert "the context of 8,192 has room for 8,191" in done.stderr


def test_empty_input(pocket_dir: Path) -> None:
    done = chat(str(pocket_dir), text="  \n")
    assert done.returncode == 2 and "the input is empty" in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"), [("--temperature", "-1", "temperature"), ("--top-p", "1.5", "top_p")]
)
def test_a_sampling_value_out_of_range(pocket_dir: Path, option: str, value: str, said: str) -> None:
    done = chat(str(pocket_dir), option, value, text=QUESTION)
    assert done.returncode == 2 and said in done.stderr and value in done.stderr


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    done = chat(str(tmp_path), text=QUESTION)
    assert done.returncode == 1 and "is no exported model and no checkpoint" in done.stderr


def test_a_damaged_model_is_a_sentence(pocket_dir: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(pocket_dir, tmp_path / "model")
    with (tmp_path / "model" / "openvino_model.bin").open("rb+") as file:
        file.truncate(1000)
    done = chat(str(tmp_path / "model"), text=QUESTION)
    assert done.returncode == 1 and "is damaged: openvino_model.bin" in done.stderr


def test_a_large_model_is_not_exported_unasked_from_a_pipe(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", vocab_size=320)
    done = chat(str(checkpoint), text=QUESTION, home=tmp_path / "home")
    assert done.returncode == 1
    assert "is not exported yet" in done.stderr and "--yes" in done.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
@pytest.mark.parametrize("answer", ["n", "y"])
def test_in_a_terminal_the_export_is_offered(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pty

    import pexpect.fdpexpect

    checkpoint = write_checkpoint(
        tmp_path / "checkpoint", vocab_size=320, hidden_size=64, intermediate_size=128, head_dim=16
    )
    ours, theirs = pty.openpty()
    env = os.environ | {HOME_VARIABLE: str(tmp_path / "home"), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    command = [sys.executable, "-m", "edge", "chat", str(checkpoint)]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True)
    os.close(theirs)
    terminal = pexpect.fdpexpect.fdspawn(ours, timeout=120, encoding="utf-8")
    terminal.expect(r"not exported yet \(reads 0\.0 GB, writes 0\.0 GB\)\. Export it now\?")
    terminal.sendline(answer)
    if answer == "y":
        terminal.expect("/help lists the commands")
        terminal.expect(r"\x1b\[\?2004h")  # the line editor is up
        terminal.sendline("/exit")
    assert child.wait(timeout=60) == (0 if answer == "y" else 1)
    assert (tmp_path / "home" / "models").exists() == (answer == "y")
    os.close(ours)


@pytest.mark.parametrize(("options", "policy"), [([], "trim"), (["--overflow", "refuse"], "refuse")])
def test_a_conversation_that_outgrows_its_context_may_be_refused(
    options: list[str], policy: str, tiny_npu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge.runtime import guarded, guarding

    taken: list[str] = []

    def opened(*asked: object, **more: object) -> guarded.Guarded:
        taken.append(str(more["policy"]))
        raise ModelError("enough", hint="That is all.")

    monkeypatch.setattr(guarding, "open_guarded", opened)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Why?")))
    assert _run(["chat", str(tiny_npu), *options]) == 1 and taken == [policy]


def test_no_checkpoint_behind_the_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert _run(["chat", "no-such-model", "--yes"]) == 1
    assert "there is no folder no-such-model" in capsys.readouterr().err
