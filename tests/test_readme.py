"""Every command the README shows is one that works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edge.files import HOME_VARIABLE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [block.strip() for block in re.findall(r"```\n(.*?)```", README, flags=re.DOTALL)]
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if "glm4-edge " in line]


def test_ci_runs_the_readmes_test_command() -> None:
    (command,) = (block for block in BLOCKS if "pytest" in block)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_first_command_installs_and_asks() -> None:
    (command,) = (block for block in BLOCKS if "pip install ." in block)
    assert command.endswith('echo "What is the capital of France?" | glm4-edge chat pocket')


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses(line: str) -> None:
    """Arguments and options are those of the command; what they do is run elsewhere."""
    from edge.cli import cli

    words = shlex.split(line.split("|")[-1].split("&&")[-1])
    assert words[0] == "glm4-edge"
    command = cli.commands[words[1]]
    command.make_context(words[1], words[2:])


@pytest.mark.model
def test_the_commands_for_the_pocket_model_answer(pocket_dir: Path, tmp_path: Path) -> None:
    """Run as written, on a model that is exported already."""
    (tmp_path / "models").mkdir()
    try:
        (tmp_path / "models" / "pocket-int4-cpu").symlink_to(pocket_dir, target_is_directory=True)
    except OSError:
        pytest.skip("symbolic links need a privilege on this Windows")
    (line,) = {line for line in COMMANDS if line.startswith("echo") and "chat pocket" in line}
    question, words = shlex.split(line.split("|")[0])[1], shlex.split(line.split("|")[1])
    done = subprocess.run(
        [sys.executable, "-m", "edge", *words[1:]], input=question, capture_output=True, text=True, timeout=300,
        env=os.environ | {HOME_VARIABLE: str(tmp_path)},
    )  # fmt: skip
    assert "Paris" in done.stdout, done.stderr


def test_the_tree_in_the_readme_is_the_tree() -> None:
    rooms = {path.name for path in (ROOT / "edge").iterdir() if path.is_dir() and path.name != "__pycache__"}
    shown = set(re.findall(r"^  (\w+)/ ", README, flags=re.MULTILINE))
    assert shown == rooms


def test_the_extras_it_names_exist() -> None:
    import importlib.metadata

    named = set(re.findall(r"\.\[(\w+)\]", README))
    assert named <= set(importlib.metadata.metadata("glm4-edge").get_all("Provides-Extra") or [])
