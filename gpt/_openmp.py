"""How OpenMP's threads wait for each other; it has to be said before torch starts them.

By default GNU OpenMP's threads spin while they wait. Where another process, or another virtual
machine, holds one of the cores, every small operation then waits for a whole scheduling period, and
training slows down several times (benchmarks/cpu_settings.py). Sleeping after a short spin
costs nothing measurable on an idle machine. A setting of the user's own is left alone.
"""

from __future__ import annotations

import os

SPINS = "2000"

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
