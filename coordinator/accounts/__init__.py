"""Who may do what: operators' links and sessions, invitations, API keys, enrolled nodes, the audit trail."""

from coordinator.accounts.accounts import Accounts
from coordinator.accounts.errors import AccountError
from coordinator.accounts.values import AuditEntry, Caller, InvitationView, KeyView, NodeRecord, Role
from coordinator.store import Store, StoreError

__all__ = [
    "AccountError",
    "Accounts",
    "AuditEntry",
    "Caller",
    "InvitationView",
    "KeyView",
    "NodeRecord",
    "Role",
    "Store",
    "StoreError",
]
