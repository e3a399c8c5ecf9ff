"""The schema: made at once for a new database, step by step for an older one, with the same outcome."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fastflow_controlplane.store.connections import parse_url
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.migrations import HEAD, migrate, upgrade
from fastflow_controlplane.store.models import metadata
from fastflow_controlplane.store.queries.runs import read_run
from sqlalchemy import Connection, create_engine, text

RUN_ID = "01890000-0000-7000-8000-000000000001"


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


def test_all_migrations_lead_to_the_tables_of_the_models(empty_url: str) -> None:
    engine = create_engine(parse_url(empty_url))
    with engine.begin() as connection:
        upgrade(connection, None)
        assert differences(connection) == []
        assert version(connection) == HEAD
    engine.dispose()


def test_a_run_of_the_first_schema_is_read_after_all_migrations(empty_url: str) -> None:
    engine = create_engine(parse_url(empty_url))
    with engine.begin() as connection:
        upgrade(connection, None, "0001")
        columns = {
            "state": "QUEUED",
            "pipeline": "hello",
            "bundle_digest": "sha256:0",
            **dict.fromkeys(("message", "reason", "request_id", "trigger", "python_version", "commit", "tree"), ""),
            **dict.fromkeys(("attempt", "failed_placements", "priority", "create_time", "queue_time", "version"), 1),
            **dict.fromkeys(("cpu_hard_milli_cores", "memory_hard_bytes", "cpu_soft_milli_cores"), 1),
            **dict.fromkeys(("memory_soft_bytes", "timeout_usec", "bundle_size", "log_limit_bytes"), 1),
            "on_log_backlog": "DROP",
            "environment_names": "[]",
            "default_environment": "{}",
            "id": RUN_ID,
            "reversed_id": RUN_ID.replace("-", "")[::-1],
        }
        names = ", ".join(f'"{name}"' for name in columns)
        values = ", ".join(f":{name}" for name in columns)
        connection.execute(text(f"INSERT INTO runs ({names}) VALUES ({values})"), columns)
        upgrade(connection, "0001")
        view = read_run(connection, RUN_ID)
        assert (view.pipeline, view.commit_subject, view.ref, view.rerun) == ("hello", "", "", None)
    engine.dispose()


async def test_a_new_database_gets_the_same_tables_and_version(store: Store) -> None:
    assert await store.write(differences) == []
    assert await store.write(version) == HEAD


def test_migrating_again_changes_nothing(empty_url: str) -> None:
    engine = create_engine(parse_url(empty_url))
    for _ in range(2):
        with engine.connect() as connection:
            migrate(connection)
            assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
    engine.dispose()
