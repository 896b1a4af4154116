"""What is measured side by side: how each gets its model from the same checkpoint, and with what it runs it.

A further one is an `Arm` and a line in `arms`; what answers in its process is a class in
`peer_child`.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import gguf_file
from benchmarks import peer as optimum
from benchmarks.machine import versions
from edge.files import HOME_VARIABLE, check_room, new_folder
from edge.model.checkpoint import Checkpoint
from edge.model.spec import GlmSpec

_LLAMA = "llama-cpp-python==0.3.36"
# Built here, for this processor; its tools, which are not used, are left out.
_FLAGS = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF"
_QUANTISE = """
import ctypes, sys
import llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + sys.argv[3]), int(sys.argv[4])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(params)))
"""


@dataclass(frozen=True)
class Place:
    """Where everything is made, and of what."""

    work: Path
    shape: str
    """Stands in the names of what is made."""
    checkpoint: Path
    """It need not be there any more once all are prepared."""
    spec: GlmSpec
    threads: int
    """For runtimes that do not choose for themselves."""
    context: int
    """Tokens, for runtimes that want to be told."""


class Arm(ABC):
    """One way from the checkpoint to answers."""

    name: str
    what: str
    """Of its settings, in a sentence without a full stop."""
    runtime: str
    """Of `peer_child.RUNTIMES`."""
    exact = True
    """Whether the weights can be run in full precision, for their own sake."""
    bare = False
    """Whether its interpreter has its own packages only, and not what this repository needs."""

    @abstractmethod
    def prepare(self, place: Place) -> None:
        """Make what is not there yet."""

    @abstractmethod
    def model(self, place: Place) -> Path:
        """What the runtime loads."""

    @abstractmethod
    def versions(self, place: Place) -> dict[str, str]:
        """Of what makes and what runs the model."""

    def missing(self) -> str | None:
        """Why it cannot be measured here, in a sentence without a full stop."""
        return None

    def python(self, place: Place) -> Path:
        """The interpreter that has the runtime."""
        return Path(sys.executable)

    def variables(self) -> dict[str, str]:
        """Of the environment, for its process."""
        return {}

    def model_bytes(self, place: Place) -> int:
        """Of the model's files, without a tokenizer that lies beside it."""
        folder = self.model(place)
        return sum((folder / f"openvino_model.{ending}").stat().st_size for ending in ("xml", "bin"))


class Ours(Arm):
    """This project, as chat runs it."""

    name = "glm4-edge"
    what = "the preset for CPUs, as `glm4-edge chat` runs it: its settings and checks, the model in its own process"
    runtime = "ours"

    def prepare(self, place: Place) -> None:
        """See `Arm`."""
        if self.model(place).is_dir():
            return
        click.echo(f"{self.name}: exporting …", err=True)
        _run([sys.executable, "-m", "edge", "export", str(place.checkpoint), str(self.model(place))])

    def model(self, place: Place) -> Path:
        """See `Arm`."""
        return place.work / f"{place.shape}-ours"

    def versions(self, place: Place) -> dict[str, str]:
        """See `Arm`."""
        return versions("glm4-edge", "openvino", "openvino-genai", "nncf")


class GenAi(Arm):
    """OpenVINO GenAI with nothing said, on optimum-intel's model with nothing said but 4 bits."""

    name = "OpenVINO GenAI"
    what = (
        "`optimum-cli export openvino --weight-format int4` (with `--group-size-fallback adjust`, without which it "
        "refuses rows that are no multiple of 128), run by a plain `LLMPipeline`"
    )
    runtime = "genai"

    def prepare(self, place: Place) -> None:
        """See `Arm`."""
        venv = place.work / "optimum-venv"
        optimum.make(venv)
        if self.model(place).is_dir():
            return
        click.echo(f"{self.name}: exporting with optimum-intel …", err=True)
        # a whole bf16 copy, and the result
        check_room(place.work, int(2.7 * place.spec.parameter_count()), "optimum-intel's export")
        with new_folder(self.model(place)) as folder:
            env = {**os.environ, "HF_HUB_OFFLINE": "1", **dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(place.work))}
            env.pop("PYTHONPATH", None)  # its packages are its own
            _run(optimum.plain_command(venv, place.checkpoint, folder), env)

    def model(self, place: Place) -> Path:
        """See `Arm`."""
        return place.work / f"{place.shape}-optimum"

    def versions(self, place: Place) -> dict[str, str]:
        """See `Arm`."""
        return optimum.versions(place.work / "optimum-venv") | versions("openvino-genai")


class LlamaCpp(Arm):
    """llama.cpp, built from source for this processor, on a GGUF that its own quantiser made."""

    runtime = "llama.cpp"
    exact = False
    bare = True

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.name = f"llama.cpp {kind}"
        self.what = (
            f"llama.cpp's own quantiser, {kind}, on the same bf16 weights; its defaults, on all fast cores, with a "
            "context no longer than is asked for"
        )

    def prepare(self, place: Place) -> None:
        """See `Arm`."""
        python = self.python(place)
        if not python.is_file():
            click.echo("llama.cpp: building, which takes a while …", err=True)
            _run([sys.executable, "-m", "venv", str(place.work / "llama-venv")])
            _run([str(python), "-m", "pip", "install", "--no-binary", "llama-cpp-python", _LLAMA],
                 {**os.environ, "CMAKE_ARGS": _FLAGS})  # fmt: skip
        if self.model(place).is_file():
            return
        whole = self.whole(place)
        if not whole.is_file():
            click.echo("llama.cpp: writing the weights as GGUF …", err=True)
            check_room(place.work, int(2.7 * place.spec.parameter_count()), "the GGUF and what is made of it")
            gguf_file.write(Checkpoint(place.checkpoint), whole)
        click.echo(f"{self.name}: quantising …", err=True)
        part = self.model(place).with_suffix(".part")
        _run([str(python), "-c", _QUANTISE, str(whole), str(part), self._kind, str(place.threads)])
        part.replace(self.model(place))

    @staticmethod
    def whole(place: Place) -> Path:
        """The weights in bf16, as long as the quantiser needs them."""
        return place.work / f"{place.shape}-bf16.gguf"

    def model(self, place: Place) -> Path:
        """See `Arm`."""
        return place.work / f"{place.shape}-{self._kind.lower()}.gguf"

    def python(self, place: Place) -> Path:
        """See `Arm`."""
        return optimum.program(place.work / "llama-venv", "python")

    def model_bytes(self, place: Place) -> int:
        """With its vocabulary, which is in the file."""
        return self.model(place).stat().st_size

    def versions(self, place: Place) -> dict[str, str]:
        """See `Arm`."""
        script = "import importlib.metadata as m; print(m.version('llama-cpp-python'))"
        done = subprocess.run([str(self.python(place)), "-c", script], check=True, capture_output=True, text=True)
        return {"llama-cpp-python": done.stdout.strip(), "built with": _FLAGS.split()[0]} | versions("gguf")


class Itrex(Ours):
    """The very model that ours is, run by intel-extension-for-transformers.

    Args:
        home: under which `glm4-edge itrex setup` has put it; left out, this program's own.
    """

    name = "ITREX"
    what = (
        "the weights of glm4-edge's model on the same grid, as `glm4-edge chat --runtime itrex` hands them to ITREX's "
        "QBits kernels; they multiply in f32"
    )
    runtime = "itrex"
    exact = False  # it has one way, and that is exact but for the order of sums

    def __init__(self, home: Path | None = None) -> None:
        self._home = home

    @functools.cached_property
    def _status(self) -> dict[str, Any]:
        words = [sys.executable, "-m", "edge", "itrex", "status", "--json"]
        done = subprocess.run(words, env={**os.environ, **self.variables()}, check=True, capture_output=True, text=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def missing(self) -> str | None:
        """See `Arm`."""
        if self._status["state"] == "ready":
            return None
        return f"its environment is {self._status['state']}; glm4-edge itrex setup makes it"

    def variables(self) -> dict[str, str]:
        """See `Arm`."""
        return {} if self._home is None else {HOME_VARIABLE: str(self._home.absolute())}

    def versions(self, place: Place) -> dict[str, str]:
        """See `Arm`."""
        found: dict[str, str] = self._status["versions"]
        return versions("glm4-edge") | found


def arms(itrex_home: Path | None = None) -> list[Arm]:
    """All, ours first."""
    return [Ours(), GenAi(), LlamaCpp("Q4_0"), LlamaCpp("Q4_K_M"), Itrex(itrex_home)]


def command(arm: Arm, place: Place) -> list[str]:
    """What starts its process."""
    child = Path(__file__).with_name("peer_child.py")
    options: dict[str, Any] = {"threads": place.threads, "context": place.context}
    return [str(arm.python(place)), str(child), arm.runtime, str(arm.model(place)), json.dumps(options)]


def environment(arm: Arm) -> dict[str, str]:
    """What this interpreter runs finds this repository, the others their own packages only."""
    env = {**os.environ, **arm.variables(), "HF_HUB_OFFLINE": "1"}
    env.pop("PYTHONPATH", None)
    if not arm.bare:
        env["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    return env


def _run(words: list[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{' '.join(words[:4])} … failed:\n{done.stderr[-2000:]}")
