"""Databases are looked at, copied while they are used, and put back."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from fastflow_controlplane.errors import AlreadyExists, FailedPrecondition
from fastflow_controlplane.runs.states import RunState
from fastflow_controlplane.store.checks import check
from fastflow_controlplane.store.copies import back_up, restore
from fastflow_controlplane.store.migrations import HEAD

from tests.contract.databases import end_sessions, execute, opened, until
from tests.contract.rows import NOW, Rows
from tests.postgres import PostgresServer


def no_log(run_id: str, attempt: int) -> int:
    return 0


async def test_a_copy_made_under_writes_is_put_back_and_the_former_database_kept(
    empty_url: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    async with opened(empty_url) as store:
        kept = await Rows(store).finished()
        back_up(empty_url, copy)
        later = await Rows(store).run()
        with pytest.raises(FailedPrecondition, match="another control plane"):
            restore(empty_url, copy, replace=True)
    assert copy.stat().st_mode & 0o777 == 0o600

    with pytest.raises(FailedPrecondition, match="--force replaces it"):
        restore(empty_url, copy, replace=False)
    aside = restore(empty_url, copy, replace=True)

    assert execute(empty_url, "SELECT id FROM runs") == [kept]
    if empty_url.startswith("sqlite"):
        assert sorted(execute(f"sqlite:///{aside}", "SELECT id FROM runs")) == [kept, later]
    else:
        schema = aside.split('"')[1]
        assert sorted(execute(empty_url, f"SELECT id FROM {schema}.runs")) == [kept, later]
    async with opened(empty_url) as restored:
        assert (await Rows(restored).view(kept)).state is RunState.SUCCEEDED


async def test_a_copy_is_put_where_there_was_no_database(empty_url: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    async with opened(empty_url):
        back_up(empty_url, copy)
    restore(empty_url, copy, replace=True)
    if empty_url.startswith("sqlite"):
        url = f"sqlite:///{tmp_path}/elsewhere/fastflow.db"
        assert restore(url, copy, replace=False) == ""
        assert check(url, no_log)[1] == []


async def test_a_restore_that_dies_leaves_the_former_database_or_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, copy = tmp_path / "fastflow.db", tmp_path / "copy"
    async with opened(f"sqlite:///{database}") as store:
        run = await Rows(store).finished()
    back_up(f"sqlite:///{database}", copy)
    rename = Path.rename

    def die_before(source: Path, target: Path) -> Path:
        if target == database:
            raise KeyboardInterrupt
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", die_before)
    with pytest.raises(KeyboardInterrupt):
        restore(f"sqlite:///{database}", copy, replace=True)
    assert execute(f"sqlite:///{database}", "SELECT id FROM runs") == [run]


async def test_a_restore_on_a_server_that_is_killed_half_way_leaves_the_former_database(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    with postgres.empty_database() as url:
        async with opened(url) as store:
            run = await Rows(store).finished()
        back_up(url, copy)
        waits = "BEGIN PERFORM pg_sleep(60); END"
        postgres.execute(f"CREATE FUNCTION wait() RETURNS event_trigger LANGUAGE plpgsql AS '{waits}'", url)
        when = "ON ddl_command_start WHEN TAG IN ('CREATE TABLE')"
        postgres.execute(f"CREATE EVENT TRIGGER waits {when} EXECUTE FUNCTION wait()", url)

        command = [sys.executable, "-m", "fastflow_controlplane", "db", "restore", str(copy), "--force"]
        environment = {**os.environ, "FASTFLOW_DATABASE_URL": url, "FASTFLOW_DATA_DIR": str(tmp_path)}
        restoring = await asyncio.create_subprocess_exec(*command, env=environment, start_new_session=True)
        asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        await until(lambda: bool(postgres.execute(asleep)) or restoring.returncode is not None)
        os.killpg(restoring.pid, signal.SIGKILL)
        assert await restoring.wait() == -signal.SIGKILL
        end_sessions(postgres, url)
        postgres.execute("DROP EVENT TRIGGER waits", url)

        async with opened(url) as store:
            assert (await Rows(store).view(run)).state is RunState.SUCCEEDED


async def test_a_copy_that_is_cut_off_replaces_nothing(empty_url: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    async with opened(empty_url) as store:
        run = await Rows(store).finished()
    back_up(empty_url, copy)
    os.truncate(copy, copy.stat().st_size - 100)
    with pytest.raises(FailedPrecondition):
        restore(empty_url, copy, replace=True)
    assert execute(empty_url, "SELECT id FROM runs") == [run]


async def test_a_copy_of_tables_that_would_not_be_found_replaces_nothing(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    with postgres.empty_database() as url, postgres.empty_database() as other:
        async with opened(url):
            pass
        back_up(url, copy)
        postgres.execute("CREATE SCHEMA elsewhere", other)
        postgres.execute(f"ALTER DATABASE {other.rpartition('/')[2]} SET search_path = elsewhere", other)
        async with opened(other) as store:
            run = await Rows(store).finished()
        with pytest.raises(
            FailedPrecondition, match=r"holds tables of the schema public, .* are looked for in elsewhere"
        ):
            restore(other, copy, replace=True)
        assert execute(other, "SELECT id FROM elsewhere.runs") == [run]
        assert execute(other, "SELECT to_regclass('public.runs')") == [None]


def test_what_is_no_copy_of_ours_replaces_nothing(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database at all")
    with pytest.raises(FailedPrecondition):
        restore(database_url, tmp_path / "text", replace=True)
    with pytest.raises(FailedPrecondition, match="is no file"):
        restore(database_url, tmp_path / "nothing", replace=True)


def test_what_is_no_sqlite_database_is_called_no_copy_of_one(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database at all")
    with pytest.raises(FailedPrecondition, match=r"text is no copy of a database of Fast-Flow$"):
        restore(f"sqlite:///{tmp_path}/fastflow.db", tmp_path / "text", replace=True)


async def test_a_copy_of_a_newer_version_replaces_nothing(empty_url: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    async with opened(empty_url):
        pass
    execute(empty_url, "UPDATE alembic_version SET version_num = '9999'")
    back_up(empty_url, copy)
    execute(empty_url, f"UPDATE alembic_version SET version_num = '{HEAD}'")
    with pytest.raises(FailedPrecondition, match="written by a newer version"):
        restore(empty_url, copy, replace=True)
    assert execute(empty_url, "SELECT version_num FROM alembic_version") == [HEAD]


async def test_a_backup_overwrites_nothing_and_leaves_no_half_copy(empty_url: str, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("precious")
    async with opened(empty_url):
        with pytest.raises(AlreadyExists):
            back_up(empty_url, tmp_path / "copy")
        with pytest.raises(FailedPrecondition, match=r"there is no folder .*no folder: make it, or name another file"):
            back_up(empty_url, tmp_path / "no folder" / "copy")
    assert (tmp_path / "copy").read_text() == "precious"
    assert not list(tmp_path.glob("**/*.partial"))


async def test_a_whole_database_has_no_fault_also_while_it_is_used(empty_url: str) -> None:
    async with opened(empty_url) as store:
        await Rows(store).finished()
        await Rows(store).assigned()
        what, faults = check(empty_url, lambda run_id, attempt: 7)
    assert faults == []
    assert what == f"schema {HEAD}, 2 runs, 2 attempts"


async def test_a_log_that_is_missing_is_named(empty_url: str) -> None:
    async with opened(empty_url) as store:
        run = await Rows(store).finished()
        _, faults = check(empty_url, no_log)
    assert faults == [f"the log files of run {run} are not as long as they were: put back the folder logs of data_dir"]


async def test_a_log_that_retention_removes_meanwhile_is_no_fault(empty_url: str) -> None:
    def removed_now(run_id: str, attempt: int) -> int:
        execute(empty_url, "UPDATE attempts SET log_remove_time = 1")
        return 0

    async with opened(empty_url) as store:
        await Rows(store).finished()
    assert check(empty_url, removed_now)[1] == []


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("UPDATE runs SET state = 'RUNNING', end_time = NULL", "do not mirror their newest attempt"),
        ("UPDATE attempts SET state = 'RUNNING'", "do not live, but an attempt of theirs does"),
        ("UPDATE runs SET attempt = 0", "have attempts they do not know of"),
        ("UPDATE runs SET end_time = NULL", "ended at no time"),
    ],
)
async def test_what_contradicts_itself_is_named(empty_url: str, damage: str, named: str) -> None:
    async with opened(empty_url) as store:
        run = await Rows(store).finished()
    execute(empty_url, damage)
    _, faults = check(empty_url, lambda run_id, attempt: 7)
    assert any(named in fault and run in fault and "db restore" in fault for fault in faults)


def test_where_there_is_no_database_none_is_made(empty_url: str, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="there is no database of Fast-Flow"):
        check(empty_url, no_log)
    assert not (tmp_path / "fastflow.db").exists()


async def test_an_older_schema_is_told_with_the_remedy(empty_url: str) -> None:
    async with opened(empty_url):
        pass
    execute(empty_url, "UPDATE alembic_version SET version_num = '0003'")
    what, faults = check(empty_url, no_log)
    assert what == "schema 0003"
    assert "db upgrade" in faults[0]


async def test_a_damaged_file_is_told_and_not_copied(tmp_path: Path) -> None:
    file = tmp_path / "fastflow.db"
    url = f"sqlite:///{file}"
    async with opened(url) as store:
        for number in range(200):
            await store.write(lambda connection, number=number: _fill(connection, number))
    content = bytearray(file.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    file.write_bytes(content)
    _, faults = check(url, no_log)
    assert any("is damaged" in fault and "db restore" in fault for fault in faults)
    with pytest.raises(FailedPrecondition, match=r"damaged|malformed"):
        back_up(url, tmp_path / "copy")


def _fill(connection, number: int) -> None:  # type: ignore[no-untyped-def]
    from fastflow_controlplane.store.queries import requests

    requests.remember(connection, "test", f"{number} {'x' * 200}", "", "", NOW)
