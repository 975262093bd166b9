"""The wire: what coordinator and nodes say to each other. No torch, no asyncio, no clock, no sockets."""

PROTOCOL_VERSION = 1
"""The version this build speaks. A pool speaks n and n-1 (CHANGELOG.md opens with the policy)."""

SUPPORTED_VERSIONS = frozenset({1})
