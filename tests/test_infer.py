"""One Core for a process."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal stacks")
def test_ctrl_c_after_models_came_and_went_is_a_keyboard_interrupt() -> None:
    script = (
        "import os, signal, gc, numpy as np, openvino as ov\nfrom openvino import opset13 as ops\n"
        "from edge.infer import core\n"
        "def run():\n"
        "    x = ops.parameter([1, 4], ov.Type.f32)\n"
        "    model = ov.Model([ops.result(ops.relu(x))], [x], 'm')\n"
        "    core().compile_model(model, 'CPU')([np.ones((1, 4), np.float32)])\n"
        "run(); gc.collect(); run(); gc.collect()\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    import time; time.sleep(5)\n"
        "except KeyboardInterrupt:\n    raise SystemExit(42)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120).returncode == 42
