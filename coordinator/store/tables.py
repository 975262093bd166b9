"""The tables, in SQLAlchemy's neutral types, so that another database can take SQLite's place.

Times are seconds since 1970. Secrets are never in a table, only their SHA-256 in hex (`*_hash`).
"""

from __future__ import annotations

from sqlalchemy import Boolean, CheckConstraint, Column, Double, ForeignKey, Integer, MetaData, String, Table

SCHEMA_VERSION = 1

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

operator_links = Table(
    "operator_links",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("created_s", Double, nullable=False),
    Column("expires_s", Double, nullable=False),
)
"""A row is there until the link is used."""

invitations = Table(
    "invitations",
    metadata,
    Column("invitation_id", String(16), primary_key=True),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("label", String(64), nullable=False),
    Column("allows_chat", Boolean, nullable=False),
    Column("allows_nodes", Boolean, nullable=False),
    Column("max_uses", Integer),
    Column("num_uses", Integer, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("expires_s", Double),
    Column("revoked_s", Double),
    CheckConstraint("max_uses IS NULL OR num_uses <= max_uses", name="uses_within_limit"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", String(16), primary_key=True),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("label", String(64), nullable=False),
    Column("invitation_id", ForeignKey("invitations.invitation_id", ondelete="CASCADE"), index=True),
    Column("created_s", Double, nullable=False),
    Column("last_used_s", Double, nullable=False),
    Column("expires_s", Double, nullable=False, index=True),
    CheckConstraint("(role = 'chat') = (invitation_id IS NOT NULL)", name="chat_comes_by_invitation"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(8), primary_key=True),
    Column("secret_hash", String(64), nullable=False),
    Column("label", String(64), nullable=False),
    Column("created_s", Double, nullable=False),
    Column("last_used_s", Double),
    Column("expires_s", Double),
    Column("revoked_s", Double),
)

nodes = Table(
    "nodes",
    metadata,
    Column("node_id", String(32), primary_key=True),
    Column("public_key", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("first_seen_s", Double, nullable=False),
    Column("last_seen_s", Double, nullable=False),
    Column("invitation_id", String(16), nullable=False),
    Column("is_blocked", Boolean, nullable=False),
)
"""`invitation_id` refers to nothing on purpose: who brought a node is still asked when the invitation is long gone."""

audit_entries = Table(
    "audit_entries",
    metadata,
    Column("entry_id", Integer, primary_key=True),
    Column("at_s", Double, nullable=False),
    Column("who", String(64), nullable=False),
    Column("what", String(400), nullable=False),
)

SQLITE_TRIGGERS = tuple(
    f"CREATE TRIGGER audit_entries_no_{verb} BEFORE {verb} ON audit_entries "
    "BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END"
    for verb in ("UPDATE", "DELETE")
)
"""What is in the trail stays there, whatever a later version of this program might try."""
