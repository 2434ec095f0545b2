"""Watching a pool: `embedpool top`. What is seen passes these modules in this order:

document (the pool's status, as records) → view (two of them become rates, percentiles, shares) → history (what sparklines
show) → screen and panels (for a terminal of so many columns and lines), or lines (for anything else). watching asks the pool,
terminal owns the keyboard, processes reads memory from /proc.

Rules
1. The pool may be older, newer, gone or another one than a second ago: what it does not say is shown as "–".
2. Counters are those of one router. When it was replaced they begin anew, and a rate is that of its own time.
3. The terminal is left as it was found, whatever happens.
"""
