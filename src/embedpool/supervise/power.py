"""A Jetson's power mode, on which all that is measured there depends: it takes cores offline and bounds clocks.

Read from two files of NVIDIA's, without its tool and without root: `nvpmodel` writes the mode's number to the first, as
"pmode:0002", and reads what a number means from the second, as "< POWER_MODEL ID=2 NAME=MODE_30W >".
Known from descriptions of JetPack 5 and 6; no board was at hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from embedpool.supervise.cgroups import text

STATUS, MODES = "var/lib/nvpmodel/status", "etc/nvpmodel.conf"


def power_mode(root: Path) -> str:
    """Its name, or its number where nothing names it; "" where there is none."""
    found = re.search(r"\bpmode:(\d+)", text(root / STATUS))
    if found is None:
        return ""
    number = int(found[1])
    named = re.search(rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+)", text(root / MODES))
    return named[1] if named else str(number)
