"""Memory that is free for a model on this machine.

Does: ask the GPU, the system and the container limit. Does not: decide what fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Memory:
    """`free_gb` of the device that training would use, in units of 1e9 bytes."""

    device: Literal["cpu", "cuda"]
    free_gb: float
    name: str

    @property
    def where(self) -> str:
        return "this machine" if self.device == "cpu" else f"the GPU ({self.name})"


def available() -> Memory:
    """GPU memory when there is a CUDA device, else free RAM within the container's limit."""
    import torch

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return Memory("cuda", free / 1e9, torch.cuda.get_device_name())
    return Memory("cpu", free_ram() / 1e9, "CPU")


def free_ram() -> float:
    """Bytes of RAM that can be had without swapping, under the cgroup limit when there is one."""
    import psutil

    free = float(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = float(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        cache = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines())
        if limit != "max":
            free = min(free, float(limit) - used + float(cache.get("inactive_file", 0)))
    except (OSError, ValueError):
        pass  # No cgroup v2 here: the system's own figure stands.
    return free
