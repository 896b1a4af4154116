"""optimum-intel's exporter in an environment of its own: what ours is measured beside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click

# The last transformers that optimum-intel 2.2.0 exports a `glm` with is 5.0.0. It asks for torchvision, which
# only vision models need; so it goes in without its dependencies, and those it does need are named here.
_PACKAGES = ("torch==2.13.0", "transformers==5.0.0", "openvino==2026.4.1", "openvino-tokenizers==2026.4.1.0",
             "nncf==3.4.0", "huggingface-hub<1.22", "requests")  # fmt: skip
_BARE = ("optimum-intel==2.2.0", "optimum==2.3.0")
_SHOWN = ("optimum-intel", "optimum", "transformers", "torch", "openvino", "openvino-tokenizers", "nncf")

DIFFERENCES = (
    "the same: int4 symmetric, groups of 128, all layers in 4 bits, int8_asym embedding and head, data-free AWQ",
    "ours also proves graph, weights, fusions, tokenizer and parts, and hashes the checkpoint; optimum-intel does not",
    "optimum-intel stores norms, biases and scales in f16; ours norms and biases in f32",
)
"""What to keep in mind when the figures are compared."""


def make(venv: Path) -> None:
    """Install it into `venv`, if that is not there."""
    if program(venv, "optimum-cli").is_file():
        return
    if venv.exists():
        raise click.ClickException(f"{venv} exists and holds no optimum-cli; name another folder")
    click.echo(f"installing optimum-intel into {venv} …", err=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(program(venv, "python")), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *_PACKAGES], check=True)
    subprocess.run([*pip, "--no-deps", *_BARE], check=True)


def command(venv: Path, checkpoint: Path, out: Path) -> list[str]:
    """The same recipe as our preset for large models."""
    words = [str(program(venv, "optimum-cli")), "export", "openvino", "--model", str(checkpoint)]
    words += ["--task", "text-generation-with-past", "--weight-format", "int4", "--sym", "--group-size", "128"]
    return [*words, "--ratio", "1.0", "--awq", "--backup-precision", "int8_asym", str(out)]


def plain_command(venv: Path, checkpoint: Path, out: Path) -> list[str]:
    """Its own defaults for 4 bits: what somebody gets who says no more than that.

    But for one word: without it the export ends with an error where rows are no multiple of 128, as the pocket model's.
    """
    words = [str(program(venv, "optimum-cli")), "export", "openvino", "--model", str(checkpoint)]
    words += ["--task", "text-generation-with-past", "--weight-format", "int4", "--group-size-fallback", "adjust"]
    return [*words, str(out)]


def versions(venv: Path) -> dict[str, str]:
    """Of its packages."""
    script = (
        f"import importlib.metadata as m, json, sys; print(json.dumps({{n: m.version(n) for n in {_SHOWN!r}}} "
        "| {'python': sys.version.split()[0]}))"
    )
    done = subprocess.run([str(program(venv, "python")), "-c", script], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def program(venv: Path, name: str) -> Path:
    """Of a virtual environment, `python` for one."""
    # absolute(), not resolve(): a venv's python is a link to the one without its packages
    return (
        venv.absolute()
        / ("Scripts" if sys.platform == "win32" else "bin")
        / (name + (".exe" if sys.platform == "win32" else ""))
    )
