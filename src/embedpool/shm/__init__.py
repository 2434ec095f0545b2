"""Shared memory: byte layout, free space (both pure) and the one module that maps files."""
