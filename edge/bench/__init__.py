"""What a user measures on the device: latency, its limits, and whether two runs differ."""
