"""Prints /proc/cpuinfo as Linux on this aarch64 core would have it, from the HWCAP words that the kernel gives every process.

For qemu's user-mode emulation, which shows the host's before its version 8.2 (see aarch64.sh). Names and bits are Linux's
(arch/arm64/include/uapi/asm/hwcap.h, Documentation/arch/arm64/elf_hwcaps.rst). Standard library only: it runs before anything
is installed.
"""

from __future__ import annotations

import ctypes
import os

AT_HWCAP, AT_HWCAP2 = 16, 26
FIRST = (
    *("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp", "asimdhp", "cpuid", "asimdrdm"),
    *("jscvt", "fcma", "lrcpc", "dcpop", "sha3", "sm3", "sm4", "asimddp", "sha512", "sve", "asimdfhm", "dit", "uscat"),
    *("ilrcpc", "flagm", "ssbs", "sb", "paca", "pacg"),
)
SECOND = (
    *("dcpodp", "sve2", "sveaes", "svepmull", "svebitperm", "svesha3", "svesm4", "flagm2", "frint", "svei8mm", "svef32mm"),
    *("svef64mm", "svebf16", "i8mm", "bf16", "dgh", "rng", "bti", "mte", "ecv", "afp", "rpres", "mte3", "sme"),
)
ARM, CORTEX_A76 = 0x41, 0xD0B  # implementer and part: what reads them wants some core it knows


def features() -> list[str]:
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    words = ((FIRST, getauxval(AT_HWCAP)), (SECOND, getauxval(AT_HWCAP2)))
    return [name for names, word in words for bit, name in enumerate(names) if word >> bit & 1]


def main() -> None:
    lines = {
        "BogoMIPS": "50.00",
        "Features": " ".join(features()),
        "CPU implementer": f"{ARM:#x}",
        "CPU architecture": "8",
        "CPU variant": "0x1",
        "CPU part": f"{CORTEX_A76:#x}",
        "CPU revision": "1",
    }
    for number in range(os.cpu_count() or 1):
        print("\n".join(f"{name}\t: {value}" for name, value in {"processor": number, **lines}.items()), end="\n\n")


if __name__ == "__main__":
    main()
