"""Cores by kind on Windows, where only the system itself tells."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections import Counter

_RELATION_PROCESSOR_CORE = 0


def core_kinds() -> Counter[int] | None:
    """Efficiency class → physical cores of it, a higher class being faster; None where Windows does not tell."""
    if sys.platform != "win32":
        return None
    ask = ctypes.windll.kernel32.GetLogicalProcessorInformationEx
    size = ctypes.c_ulong(0)
    ask(_RELATION_PROCESSOR_CORE, None, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    if not size.value or not ask(_RELATION_PROCESSOR_CORE, buffer, ctypes.byref(size)):
        return None
    return parse(buffer.raw[: size.value])


def parse(records: bytes) -> Counter[int]:
    """Count SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX records: relation, size, flags, efficiency class, …"""
    kinds: Counter[int] = Counter()
    place = 0
    while place + 10 <= len(records):
        relation, size, _, efficiency = struct.unpack_from("<IIBB", records, place)
        if relation == _RELATION_PROCESSOR_CORE:
            kinds[efficiency] += 1
        place += max(size, 10)
    return kinds
