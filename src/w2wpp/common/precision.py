"""In which precision this processor multiplies fast: said here only, and asked by all that takes large products.

A fact of the processor and not a timing: what a busy machine measures may differ from run to run, and so would results.
"""

import os
from functools import cache

import torch

from w2wpp.common.errors import W2WError

VARIABLE = "W2WPP_PRECISION"  # float32 or bfloat16: what to take in place of the processor's own, for tests and comparisons
NAMES = ("float32", "bfloat16")
# What ONEDNN_MAX_CPU_ISA may say and leave bfloat16 to be emulated; the processor's own flags do not know of it.
CAPS = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


def fast_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """What to take large products in on `device`: bfloat16 where it has instructions for that, else float32.

    Raises W2WError where the environment's W2WPP_PRECISION names neither.
    """
    asked = os.environ.get(VARIABLE)
    if asked:
        if asked not in NAMES:
            raise W2WError(f"{VARIABLE} is {asked!r}; {' or '.join(NAMES)} was expected. Correct it, or unset it.")
        return torch.bfloat16 if asked == "bfloat16" else torch.float32
    kind = torch.device(device).type
    has = (kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)) or (kind == "cpu" and cpu_has_bfloat16())
    return torch.bfloat16 if has else torch.float32


def fast_products(device: str | torch.device, dtype: torch.dtype = torch.float32) -> torch.autocast:
    """A context in which networks of float32 on `device` take products in the fast precision; nothing for another `dtype`."""
    fast = fast_dtype(device)
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == torch.float32 and fast == torch.bfloat16)


@cache
def cpu_has_bfloat16() -> bool:
    """Whether torch multiplies bfloat16 on this processor by instructions made for it (AVX-512 BF16 or AMX)."""
    flags = any(getattr(torch.cpu, probe, bool)() for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    # Both can be told to use less than the processor has, which is how one without is simulated.
    capped = torch.backends.cpu.get_cpu_capability() != "AVX512" or os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in CAPS
    return flags and not capped


def processor_features() -> str:
    """The vector instructions that torch uses here, and whether bfloat16 is among them: beside any figure of speed or memory."""
    return f"{torch.backends.cpu.get_cpu_capability()}, {'with' if cpu_has_bfloat16() else 'without'} bfloat16"
