"""What this process runs on."""

import os
import platform
from pathlib import Path

from thinet_onnx.speed_result import Machine


def machine() -> Machine:
    """What this process runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(_processor(), cores, platform.platform(terse=True))


def _processor() -> str:
    """The processor's name as the system knows it."""
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
