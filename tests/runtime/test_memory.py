from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys
from pathlib import Path
from edge.runtime.memory import return_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "yes":
    assert return_freed_memory() is True

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) // 1024

libc.free(libc.malloc(30 << 20))  # glibc learns from this that blocks of 30 MB are often freed
kept, before = [], anonymous()
for step in range(1, 40):  # a buffer that grows, and something small that stays above each
    size = (5 << 20) + step * (1 << 19)
    buffer = libc.malloc(size)
    ctypes.memset(buffer, 1, size)
    kept.append(libc.malloc(1000))
    libc.free(buffer)
print(anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone")
def test_a_growing_buffer_leaves_no_holes() -> None:
    """In MB: with the heap as it comes, more than the largest of the buffers."""
    left = {
        how: int(subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True).stdout)
        for how in ("no", "yes")
    }
    assert left["yes"] <= 2
    assert left["no"] > 20


@pytest.mark.skipif(sys.platform == "linux", reason="elsewhere")
def test_elsewhere_nothing_is_done() -> None:
    from edge.runtime.memory import return_freed_memory

    assert return_freed_memory() is False
