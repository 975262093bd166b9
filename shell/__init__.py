"""The asyncio implementation of protocol.env, shared by coordinator and agent."""

from shell.env import AsyncioEnv

__all__ = ["AsyncioEnv"]
