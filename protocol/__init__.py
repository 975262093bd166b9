"""The wire: what coordinator and nodes say to each other. No torch, no asyncio, no clock, no sockets."""

PROTOCOL_VERSION = 3
"""The version this build speaks. A pool speaks n and n-1 (CHANGELOG.md opens with the policy)."""

SUPPORTED_VERSIONS = frozenset({2, PROTOCOL_VERSION})
"""Version 2 knows no measured links: nothing of that is ever sent to a node that speaks it. Version 1 had no keys and
never left loopback: it is not spoken any more."""

PEER_VERSION = min(SUPPORTED_VERSIONS)
"""What a node says on a direct link: the oldest version in which links are the same, for the neighbour may speak it."""

LINKS_VERSION = 3
"""From this version on a node measures its links."""
