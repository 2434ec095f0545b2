"""The router: a pure core (core, queue, cost) and the poll loop around it (server, sessions)."""
