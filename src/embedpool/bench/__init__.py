"""Measuring a pool: `embedpool bench`. A run goes through these modules in this order:

workload (which request is due when) and texts → loads (starts processes) → load, drive (in them: asks, and notes instants)
→ recording (instants to histograms and stages) → measure (one run) → series (rates, repeats, the search of `--slo`)
→ report, plot, compare. What is kept is in results, and nothing else goes into the JSON file.

Rules
1. A latency begins at the instant at which its request was due, whatever became of those before it.
2. No request is left out: one without vectors counts as slower than all that had some, and is counted by its code.
3. What makes the load is not what is measured: it is other processes, and how late these were is part of every result.
4. A run that failed is an error (RunFailed), never a zero.
"""

from __future__ import annotations


class RunFailed(Exception):
    """A run gave no result. The message is for the user: what failed, and what the load or the pool said."""
