"""Memory and speed classes of phones, Raspberry Pi and laptops, from published figures with their sources.

Does: hold them. Does not: measure anything, or predict (`export.target` for a file, `factory.plan` for a student to be made).
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 1e9


@dataclass(frozen=True)
class DeviceClass:
    """A class of devices: what a model may take there, and the bytes/s its decoding was published to reach."""

    name: str
    memory_mb: int
    """megabytes (1e6 bytes) for weights, cache and runtime together"""
    memory_reason: str
    slow_gb_s: float
    """bytes of weights streamed per second (1e9) on a slow device of the class"""
    fast_gb_s: float
    slow_source: str
    fast_source: str


DEVICE_CLASSES: dict[str, DeviceClass] = {
    device.name: device
    for device in (
        DeviceClass(
            "phone", 1500, "a quarter of a 6 GB phone; Gemma-4-E2B runs there in 1733 MB (ai.google.dev/edge/litert-lm/overview)",
            11.0, 57.0,
            "MobileVLM-1.7B Q4_K (0.79 GB) at 14 tokens/s, 4 threads on a Snapdragon 888 CPU "
            "(llama.cpp docs/multimodal/MobileVLM.md)",
            "Llama 3.2 1B SpinQuant 4-bit (1083 MiB) at 50.2 tokens/s on a OnePlus 12 CPU "
            "(pytorch/executorch examples/models/llama/README.md)",
        ),
        DeviceClass(
            "pi", 2000, "half of a 4 GB Raspberry Pi 5",
            9.8, 10.6,
            "five quant types of one 0.5B model, 9.8 to 10.6 GB/s of file bytes on a Raspberry Pi 5, 4 threads "
            "(ggml-org/llama.cpp#26484)",
            "the same; the memory's own limit is 17 GB/s",
        ),
        DeviceClass(
            "laptop", 8000, "half of a 16 GB laptop",
            22.0, 47.0,
            "Llama 3.2 3B Q4_K_M (1.87 GiB) at 11.05 tokens/s, 2 threads on an i3-1315U (geerlingguy/sbc-reviews#107)",
            "Llama 3.1 8B Q4_K_M (4.92 GB) at 9.63 tokens/s on a Ryzen 7 8840U CPU (brand-o/normiebench#8)",
        ),
    )
}  # fmt: skip

RUNTIME_MB = 50
"""What the runtime takes beside weights and cache: measured 14 MB a context, 10 to 40 MB of buffers for small models."""
