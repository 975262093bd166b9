"""Is this database ours, whole, and of a version that this program understands? An empty one is given the tables."""

from __future__ import annotations

from sqlalchemy import Connection, insert, inspect, select

from coordinator.store.errors import StoreError
from coordinator.store.tables import SCHEMA_VERSION, SQLITE_TRIGGERS, metadata, schema_version


def prepare_schema(connection: Connection, name: str) -> None:
    """Create what is missing in a new database, check an old one. Raises StoreError; a refused file is unchanged."""
    check_pages(connection, name)
    there = set(inspect(connection).get_table_names())
    if not there:
        create_schema(connection)
    elif schema_version.name not in there:
        raise StoreError("store_foreign", name)
    else:
        check_version(connection, name)
        check_tables(there, name)


def create_schema(connection: Connection) -> None:
    metadata.create_all(connection)
    for trigger in SQLITE_TRIGGERS if connection.dialect.name == "sqlite" else ():
        connection.exec_driver_sql(trigger)
    connection.execute(insert(schema_version).values(version=SCHEMA_VERSION))


def check_pages(connection: Connection, name: str) -> None:
    """Walk through the file once, now, rather than fail on a damaged page in the middle of somebody's request."""
    if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() != "ok":
        raise StoreError("store_damaged", name)


def check_version(connection: Connection, name: str) -> None:
    versions = list(connection.scalars(select(schema_version.c.version)))
    if len(versions) == 1 and isinstance(versions[0], int) and versions[0] > SCHEMA_VERSION:
        raise StoreError("store_newer", name)
    if versions != [SCHEMA_VERSION]:
        raise StoreError("store_damaged", name)


def check_tables(there: set[str], name: str) -> None:
    if not set(metadata.tables) <= there:
        raise StoreError("store_damaged", name)
