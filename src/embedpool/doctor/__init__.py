"""Is this machine, and the pool on it, set up well? `read` and `probe` find `facts`, `checks` judge them.

Judging is pure, so that each verdict has a test with facts of a machine that nobody needs to have.
"""
