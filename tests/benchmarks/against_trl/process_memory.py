"""Peak memory of this process above what its imports left, and on which device it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_RESET_PEAK = "5"  # proc(5): clear_refs


def _bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (size,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(size)


class PeakMemory:
    """Measures from the moment it is made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="utf-8")
        self._level = _bytes("VmRSS")

    def report(self) -> dict[str, Any]:
        """Bytes that were resident at the peak above the level at the start; on CUDA also what tensors took there."""
        told: dict[str, Any] = {
            "peak_bytes": _bytes("VmHWM") - self._level,
            "level_bytes": self._level,
            "threads": torch.get_num_threads(),
        }
        if torch.cuda.is_available():
            told["cuda_peak_bytes"] = torch.cuda.max_memory_allocated()
        return told
