"""The rooms and their one-way arrows, and what a start costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edge

PACKAGE = Path(edge.__file__).parent
CORE = {"errors", "manifest", "messages", "files"}
# room → rooms it may import, besides core and itself
ARROWS = {
    "core": set(),
    "model": set(),
    "export": {"model"},
    "runtime": set(),
    "ui": {"runtime"},
    "cli": {"model", "export", "runtime", "ui"},
}
# heavy package → the only files that may import it
ONLY = {
    "openvino_genai": {"runtime/engine.py"},
    "nncf": {"export/compress.py"},
    "openvino_tokenizers": {"export/tokenize.py", "export/whole_pieces.py"},
    "torch": set(),
    "gradio": {"ui/web.py"},
}


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def room(name: str) -> str:
    """The room of `edge.x.y`, or of a file's path relative to the package."""
    return "core" if name in CORE or name == "__init__" else name


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_arrows_run_one_way(path: Path) -> None:
    here = room(path.relative_to(PACKAGE).with_suffix("").parts[0])
    allowed = ARROWS[here] | {"core", here}
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "edge" and len(parts) > 1 and parts[1] not in ("__version__",):
            assert room(parts[1]) in allowed, f"{here} must not import {name}"
        if parts[0] in ONLY:
            assert path.relative_to(PACKAGE).as_posix() in ONLY[parts[0]], f"{path.name} must not import {parts[0]}"


def test_the_arrows_test_sees_a_wrong_arrow(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text("from edge.export import graph\nimport edge.runtime.engine\n")
    assert imports(source) == ["edge.export.graph", "edge.runtime.engine"]


HELPS = [[], ["export"], ["chat"], ["ui"]]
LIGHT = {"edge", "click", "colorama"}


@pytest.mark.parametrize("command", HELPS, ids=lambda command: " ".join(command) or "glm4-edge")
def test_help_loads_nothing_heavier_than_click(command: list[str]) -> None:
    script = (
        "import sys, json\nbefore = set(sys.modules)\nfrom edge.cli import _run\n"
        f"code = _run({[*command, '--help']!r})\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(json.dumps([code, sorted(new)]), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    code, new = json.loads(done.stderr)
    assert code == 0 and "Usage" in done.stdout
    assert {name for name in new if not name.startswith("_")} <= LIGHT


@pytest.mark.parametrize("command", HELPS, ids=lambda command: " ".join(command) or "glm4-edge")
def test_help_answers_within_half_a_second(command: list[str]) -> None:
    """The best of five: a busy machine may be slow once, not always."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "edge", *command, "--help"], capture_output=True, check=True, timeout=60)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5, times


def test_every_command_is_in_the_help_tests() -> None:
    from edge.cli import cli

    assert set(cli.commands) == {command[0] for command in HELPS if command}
