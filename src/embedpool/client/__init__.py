"""Clients of a pool: a sans-IO core (core, arena), and the blocking and the asyncio client around it."""

from embedpool.client.aio import AsyncClient
from embedpool.client.sync import Client

__all__ = ["AsyncClient", "Client"]
