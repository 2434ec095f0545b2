"""embedpool in other libraries' terms: one module per library, which is imported only by whoever imports that module.

Each is an ordinary client of a pool (`access`): it finds one, or is given an endpoint, a Client or a Pool.
"""
