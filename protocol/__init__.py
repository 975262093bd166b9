"""The wire: what coordinator and nodes say to each other. No torch, no asyncio, no clock, no sockets."""

PROTOCOL_VERSION = 2
"""The version this build speaks. A pool speaks n and n-1 (CHANGELOG.md opens with the policy)."""

SUPPORTED_VERSIONS = frozenset({2})
"""Version 1 had no keys and never left loopback: it is not spoken any more."""
