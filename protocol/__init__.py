"""The wire: what coordinator and nodes say to each other. No torch, no asyncio, no clock, no sockets."""

PROTOCOL_VERSION = 4
"""The version this build speaks. A pool speaks n and n-1 (CHANGELOG.md opens with the policy)."""

SUPPORTED_VERSIONS = frozenset({3, PROTOCOL_VERSION})
"""Version 3 cannot recover a session in part: a node that speaks it computes the whole log anew after each change of
the chain, is not asked where rows are, and leaves at once. Nothing of version 4 is ever sent to it."""

PEER_VERSION = min(SUPPORTED_VERSIONS)
"""What a node says on a direct link: the oldest version in which links are the same, for the neighbour may speak it."""

RECOVERY_VERSION = 4
"""From this version on a node keeps its KV over a change of the chain, says where rows are, and leaves softly."""
