"""glm4-edge: GLM-4 on your own Intel laptop, as an int4 OpenVINO model made without PyTorch."""

import sys

# OpenVINO and NNCF report every use to their makers, through this package; both do without it where it
# cannot be imported. A model on one's own laptop is nobody else's business.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__version__ = "0.1.0"
