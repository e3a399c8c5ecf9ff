"""The schema: made at once for a new database, step by step for an older one, with the same outcome."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from fastflow_controlplane.errors import FailedPrecondition, FastFlowError
from fastflow_controlplane.runs.states import RunState
from fastflow_controlplane.store import migrations
from fastflow_controlplane.store.connections import make_engine, parse_url
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.migrations import HEAD, upgrade
from fastflow_controlplane.store.models import attempts, metadata, runs
from fastflow_controlplane.store.queries import agents
from fastflow_controlplane.store.queries.runs import read_run
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    LargeBinary,
    MetaData,
    String,
    Table,
    text,
)

from tests.contract.databases import opened
from tests.contract.rows import Journal, Rows

SCRIPTS = ScriptDirectory(str(migrations.SCRIPTS))
REVISIONS = [script.revision for script in SCRIPTS.walk_revisions()][::-1]
RUN_ID = "01890000-0000-7000-8000-000000000001"


def differences(connection: Connection) -> list[object]:
    """What the tables lack or have too much, beside the models."""
    return list(
        compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True}),
            metadata,
        )
    )


def sample(column: Column[Any]) -> object:
    """A value of its type; rows refer to each other by ids that are all the same."""
    if column.name in ("attempt", "number"):
        return 1
    match column.type:
        case JSON():
            return {"words": ["a", None, 1.5]}
        case Boolean():
            return True
        case Float():
            return 2.5
        case LargeBinary():
            return b"\x00\xff"
        case String():
            return "x" * min(column.type.length or 40, 40) if column.name == "reversed_id" else RUN_ID[:36]
        case _:
            return 2**40 if isinstance(column.type, BigInteger) else 7


@contextmanager
def writing(url: str) -> Iterator[Connection]:
    """A connection as the control plane's own, in a transaction."""
    engine = make_engine(parse_url(url), "test", writing=True, size=1)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


async def start(url: str) -> None:
    """Does to the schema what a start of the control plane does, or `db upgrade`."""
    store = Store(url)
    store.open()
    await store.close()


AddMigration = Callable[[str], None]


@pytest.fixture
def add_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AddMigration:
    """Makes a migration, given the body of its `upgrade`, the newest one."""

    def add(body: str) -> None:
        scripts = tmp_path / "migrations"
        shutil.copytree(migrations.SCRIPTS, scripts)
        head = f'import sqlalchemy as sa\nfrom alembic import op\nrevision, down_revision = "9000", "{HEAD}"\n'
        (scripts / "versions" / "9000_added.py").write_text(f"{head}def upgrade():\n{indent(dedent(body), '    ')}")
        monkeypatch.setattr(migrations, "SCRIPTS", scripts)
        monkeypatch.setattr(migrations, "HEAD", "9000")

    return add


def version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def test_all_migrations_lead_to_the_tables_of_the_models(empty_url: str) -> None:
    with writing(empty_url) as connection:
        upgrade(connection, None)
        assert differences(connection) == []
        assert version(connection) == HEAD


async def test_a_run_of_the_first_schema_is_read_after_a_start(empty_url: str) -> None:
    with writing(empty_url) as connection:
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
            "environment_names": [],
            "default_environment": {},
            "id": RUN_ID,
            "reversed_id": RUN_ID.replace("-", "")[::-1],
        }
        first = Table("runs", MetaData(), autoload_with=connection)
        connection.execute(first.insert().values(columns))
    await start(empty_url)
    with writing(empty_url) as connection:
        view = read_run(connection, RUN_ID)
        assert (view.pipeline, view.commit_subject, view.ref, view.rerun) == ("hello", "", "", None)


async def test_rows_of_every_table_since_the_first_schema_come_through_each_start(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, dict[str, object]] = {}
    with writing(empty_url) as connection:
        upgrade(connection, None, REVISIONS[0])
    for target in REVISIONS:
        with monkeypatch.context() as patched:
            patched.setattr(migrations, "HEAD", target)
            await start(empty_url)
        with writing(empty_url) as connection:
            assert version(connection) == target
            tables = MetaData()
            tables.reflect(connection)
            for table in tables.sorted_tables:
                if table.name != "alembic_version" and table.name not in written:
                    written[table.name] = {column.name: sample(column) for column in table.columns}
                    connection.execute(table.insert().values(written[table.name]))
    assert set(written) == set(metadata.tables)
    with writing(empty_url) as connection:
        for name, values in written.items():
            row = connection.execute(metadata.tables[name].select()).one()
            assert {column: row._mapping[column] for column in values} == values


async def test_a_migration_that_fails_in_the_middle_leaves_the_schema_and_all_rows(
    empty_url: str, add_migration: AddMigration
) -> None:
    async with opened(empty_url) as store:
        _, key = await Rows(store).assigned()
    add_migration(
        """
        op.create_table("added", sa.Column("id", sa.Integer(), primary_key=True))
        op.add_column("runs", sa.Column("added", sa.Integer()))
        with op.batch_alter_table("agents") as agents:
            agents.alter_column("slots", type_=sa.BigInteger(), existing_type=sa.Integer(), existing_nullable=False)
        op.execute("DELETE FROM attempts")
        raise ZeroDivisionError
        """
    )
    with pytest.raises(ZeroDivisionError):
        await start(empty_url)
    with writing(empty_url) as connection:
        assert version(connection) == HEAD
        assert differences(connection) == []
        (attempt,) = read_run(connection, key.run_id).attempts
        assert attempt.state is RunState.ASSIGNED


async def test_a_table_that_is_made_anew_takes_nothing_with_it_that_belongs_to_its_rows(
    empty_url: str, add_migration: AddMigration
) -> None:
    async with opened(empty_url) as store:
        _, key = await Rows(store).assigned()
    add_migration(
        """
        with op.batch_alter_table("runs") as runs:
            runs.alter_column("priority", type_=sa.BigInteger(), existing_type=sa.Integer(), existing_nullable=False)
        """
    )
    await start(empty_url)
    with writing(empty_url) as connection:
        assert version(connection) == "9000"
        assert [attempt.number for attempt in read_run(connection, key.run_id).attempts] == [1]


async def test_keys_are_looked_after_again_once_the_schema_is_new(empty_url: str) -> None:
    with writing(empty_url) as connection:
        upgrade(connection, None, "0001")
    async with opened(empty_url) as store:
        _, key = await Rows(store).assigned()
        await store.write(lambda each: each.execute(runs.delete().where(runs.c.id == key.run_id)))
        assert await store.read(lambda each: each.execute(attempts.select()).all()) == []


async def test_a_migration_that_leaves_rows_without_those_they_belong_to_is_undone(
    empty_url: str, add_migration: AddMigration
) -> None:
    async with opened(empty_url) as store:
        _, key = await Rows(store).assigned()
    add_migration('op.execute("DELETE FROM agents")')
    with pytest.raises(FastFlowError, match="attempts"):
        await start(empty_url)
    with writing(empty_url) as connection:
        assert version(connection) == HEAD
        assert read_run(connection, key.run_id).attempts[0].agent == "w"


def test_no_migration_leads_back() -> None:
    for revision in REVISIONS:
        assert not hasattr(SCRIPTS.get_revision(revision).module, "downgrade")


def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(empty_url: str) -> None:
    with writing(empty_url) as connection:
        upgrade(connection, None)
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(FailedPrecondition, match=r"schema 9999.*written by a newer version"):
        Store(empty_url).open()
    with writing(empty_url) as connection:
        assert version(connection) == "9999"


async def test_text_is_sorted_by_its_bytes_whatever_the_language_of_the_server(empty_url: str) -> None:
    store = Store(empty_url)
    store.open()
    await store.start()
    for name in ("b", "a", "B", "a~1", "ä"):
        await Rows(store).agent(name)
    assert await store.read(agents.read_names) == ["B", "a", "a~1", "b", "ä"]
    await store.close()


async def test_a_nul_in_a_text_stops_nothing(store: Store) -> None:
    rows = Rows(store)
    agent, key = await rows.assigned()
    await rows.apply(agent, [Journal(key).moved(RunState.PREPARING, message="nul: \0.")])
    assert (await rows.newest(key.run_id)).message in ("nul: \0.", "nul: \ufffd.")


async def test_a_new_database_gets_the_same_tables_and_version(store: Store) -> None:
    assert await store.write(differences) == []
    assert await store.write(version) == HEAD


async def test_migrating_again_changes_nothing(empty_url: str) -> None:
    for _ in range(2):
        await start(empty_url)
        with writing(empty_url) as connection:
            assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
