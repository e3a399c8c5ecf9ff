"""The schema: made at once for a new database, step by step for an older one, with the same outcome."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.migrations import HEAD, migrate, upgrade
from fastflow_controlplane.store.models import metadata
from sqlalchemy import Connection, create_engine, text


def differences(connection: Connection) -> list[object]:
    """What the tables lack or have too much, beside the models."""
    return list(
        compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True}),
            metadata,
        )
    )


def version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def test_all_migrations_lead_to_the_tables_of_the_models(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        upgrade(connection, None)
        assert differences(connection) == []
        assert version(connection) == HEAD
    engine.dispose()


async def test_a_new_database_gets_the_same_tables_and_version(store: Store) -> None:
    assert await store.write(differences) == []
    assert await store.write(version) == HEAD


def test_migrating_again_changes_nothing(database_url: str) -> None:
    engine = create_engine(database_url)
    for _ in range(2):
        with engine.connect() as connection:
            migrate(connection)
            assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
    engine.dispose()
