"""What the coordinator keeps for good: accounts, enrolled nodes, the audit trail."""

from coordinator.store.errors import StoreError
from coordinator.store.store import Store

__all__ = ["Store", "StoreError"]
