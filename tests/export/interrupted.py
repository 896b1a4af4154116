"""An export in a process of its own that can be killed at any moment, without three seconds of imports before.

Imported by a fork server before it forks, so PyTorch must be out of the way as it is for a user.
"""

from __future__ import annotations

import sys
from typing import Any

sys.modules.setdefault("torch", None)  # type: ignore[arg-type]

import nncf  # noqa: E402, F401
import openvino_tokenizers  # noqa: E402, F401
import transformers.convert_slow_tokenizer  # noqa: E402, F401

import edge.cli  # noqa: E402
import edge.export.pipeline as pipeline  # noqa: E402


def export(argv: list[str], ready: Any) -> None:
    """The command line with `argv`, a small model treated as a large one: what is left of it is gone on with."""
    pipeline._WORTH_KEEPING = 0
    ready.set()
    edge.cli.main(["export", *argv])
