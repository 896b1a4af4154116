"""Checkpoint → OpenVINO model on disk."""
