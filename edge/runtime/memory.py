"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # of mallopt in glibc's malloc.h
_OWN_PAGES_BYTES = 1 << 18


def return_freed_memory() -> bool:
    """Have glibc give blocks of 256 KB and more pages of their own; call it before a model is loaded.

    Attention's buffers grow with every chunk of a prompt. Left alone, glibc takes blocks up to 32 MB from the heap,
    where each step leaves a hole that is too small for the next: reading 32,768 tokens in the pocket's shape held
    1.4 GB, where half of that was in use. With pages of their own they are gone when freed, at the same speed.

    Returns:
        Whether it was done: False where the C library is not glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES))
