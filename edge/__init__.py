"""glm4-edge: GLM-4 on your own Intel laptop, as an int4 OpenVINO model made without PyTorch."""

__version__ = "0.1.0"
