"""How well a training uses its machine: the share of the GPU's peak, and the memory taken.

Model FLOPs utilisation (MFU, Chowdhery et al. 2022, arXiv 2204.02311): the FLOPs that the model needs
for the tokens of a second, 3 forward passes for one step, over what the hardware could do at most.
"""

from __future__ import annotations

import os

import psutil
import torch

# Dense bf16 FLOP/s by the makers' data sheets; what is not here has no MFU.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


def peak_flops(device_name: str | None = None) -> float | None:
    """Return the dense bf16 FLOP/s of the GPU, None where there is none or it is not known."""
    if device_name is None:
        if not torch.cuda.is_available():
            return None
        device_name = torch.cuda.get_device_name()
    if "PCIe" in device_name or "MIG" in device_name:  # slower than the part the sheet speaks of
        return None
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)


def utilisation(tokens_per_s: float, flops_per_token: float | None, processes: int, peak: float | None) -> float | None:
    """Return the MFU, 0 to 1.

    Args:
        tokens_per_s: Of all processes together.
        flops_per_token: Of one forward pass, head included.
        processes: GPUs at work.
        peak: FLOP/s of one of them.
    """
    if flops_per_token is None or peak is None:
        return None
    return 3 * flops_per_token * tokens_per_s / (processes * peak)


def memory_bytes() -> int:
    """Return the most memory so far: of the GPU where there is one, otherwise what this process holds now."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return int(psutil.Process(os.getpid()).memory_info().rss)
