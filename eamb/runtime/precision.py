"""Which precision a device computes in: bf16 is fast where the hardware has it, slow where it is emulated."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import torch

CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
# Values of ONEDNN_MAX_CPU_ISA that let oneDNN use them (docs of oneDNN, "CPU Dispatcher Control").
ALLOWS_BF16 = re.compile(r"DEFAULT|AVX512_CORE_(BF16|FP16|AMX.*)|AVX10.*", re.IGNORECASE)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself.

    On CUDA from compute capability 8.0 (Ampere) on. On a CPU if it has avx512_bf16 or amx_bf16 and
    ONEDNN_MAX_CPU_ISA does not hide them; torch's own query also says yes where oneDNN only converts.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT")
    return device.type == "cpu" and bool(ALLOWS_BF16.fullmatch(limit)) and bool(CPU_FLAGS & cpu_flags())


def cpu_flags() -> set[str]:
    """The processor's instruction sets, as Linux lists them; empty on other systems."""
    path = Path("/proc/cpuinfo")
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", path.read_text(), re.M) if path.is_file() else None
    return set(listed[1].split()) if listed else set()


def choose_precision(asked: str, device: torch.device) -> str:
    """The precision to use: what "auto" means on the device, or else what was asked for.

    Warns on stderr if bf16 was asked for and is emulated, which makes a training 10 to 20 times as slow.
    """
    native = computes_bf16(device)
    if asked == "auto":
        return "bf16" if native else "fp32"
    if asked == "bf16" and not native:
        print(
            f"warning: {device} emulates bf16 and is many times slower in it; fp32 or auto would be faster",
            file=sys.stderr,
        )
    return asked
