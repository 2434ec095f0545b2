"""The supervisor: core plan and restart policy (pure), place and processes (I/O), and a pool's whole life (supervisor)."""
