"""Secrets, on every database: versions never change, scopes are kept apart, and no value shows."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fastflow.ids import new_id
from fastflow.pipelines.environment import MAX_VALUE_BYTES
from fastflow_controlplane.agents.model import AgentFacts
from fastflow_controlplane.clock import ManualClock
from fastflow_controlplane.errors import AlreadyExists, DataLoss, InvalidArgument, NotFound
from fastflow_controlplane.secrets.sealing import Sealer
from fastflow_controlplane.secrets.service import PRUNE_SECONDS, SecretService
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.models import attempts as attempts_table
from fastflow_controlplane.store.models import metadata
from fastflow_controlplane.store.queries import attempts, runs
from fastflow_controlplane.store.queries.registration import Belonging, register
from fastflow_controlplane.store.queries.transitions import Epochs
from sqlalchemy import Connection, select, update

from tests.contract.rows import new_run

VALUE = b"correct horse battery staple"
PIPELINES = ["etl", "mail", "report"]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def secrets(store: Store, clock: ManualClock, tmp_path: Path) -> SecretService:
    async def pipelines() -> list[str]:
        return PIPELINES

    return SecretService(store, clock, Sealer.load(tmp_path / "secret.key"), pipelines)


async def given_to(secrets: SecretService, pipeline: str) -> dict[str, bytes]:
    return {secret.name: secret.value for secret in await secrets.for_run(pipeline)}


async def assign(store: Store, versions: dict[str, int]) -> Callable[[], Awaitable[None]]:
    """Stores a live attempt that was given these versions; returns how to settle it."""
    run_id = new_id()

    def make(connection: Connection) -> None:
        register(connection, AgentFacts(agent_id="agent", name="agent", instance_id="i"), (), Belonging(), "c", 1)
        runs.insert_run(connection, new_run(run_id, "etl"), 1)
        assert attempts.assign(connection, run_id, "agent", "token", versions, Epochs(session=0, leader=1), 2)

    def forget(connection: Connection) -> None:
        connection.execute(update(attempts_table).where(attempts_table.c.run_id == run_id).values(desired="FORGET"))

    async def settle() -> None:
        await store.write(forget)

    await store.write(make)
    return settle


async def test_a_run_gets_the_secrets_of_its_pipeline_and_of_all(secrets: SecretService) -> None:
    await secrets.set("TOKEN", b"for etl", ["etl"])
    await secrets.set("SHARED", b"for all", all_pipelines=True)
    assert await given_to(secrets, "etl") == {"TOKEN": b"for etl", "SHARED": b"for all"}
    assert await given_to(secrets, "mail") == {"SHARED": b"for all"}


async def test_a_pipeline_s_own_secret_comes_before_one_of_all(secrets: SecretService) -> None:
    await secrets.set("TOKEN", b"own", ["etl"])
    await secrets.set("TOKEN", b"of all", all_pipelines=True)
    assert await given_to(secrets, "etl") == {"TOKEN": b"own"}
    assert await given_to(secrets, "mail") == {"TOKEN": b"of all"}


async def test_a_new_value_is_a_new_version_and_the_old_one_stays_as_it_was(secrets: SecretService) -> None:
    (first,) = await secrets.set("TOKEN", b"first value", ["etl"])
    (second,) = await secrets.set("TOKEN", b"second value", ["etl"])
    assert (first.version, second.version) == (1, 2)
    (again,) = await secrets.values({"TOKEN": 1}, "etl")
    assert (again.value, again.version) == (b"first value", 1)
    assert await given_to(secrets, "etl") == {"TOKEN": b"second value"}


async def test_one_value_for_several_pipelines_is_one_secret_each(secrets: SecretService) -> None:
    stored = await secrets.set("TOKEN", VALUE, ["mail", "etl", "mail"])
    assert [(secret.pipeline, secret.version) for secret in stored] == [("etl", 1), ("mail", 2)]
    assert await given_to(secrets, "mail") == {"TOKEN": VALUE}


async def test_short_values_are_told_not_to_be_masked(secrets: SecretService) -> None:
    assert [(await secrets.set("A", value, ["etl"]))[0].masked for value in (b"12345", b"123456")] == [False, True]
    assert [secret.masked for secret in (await secrets.list()).secrets] == [True]


async def test_binary_values_are_kept(secrets: SecretService) -> None:
    await secrets.set("KEY", b"\xff\xfe \n'\"", ["etl"])
    assert await given_to(secrets, "etl") == {"KEY": b"\xff\xfe \n'\""}


async def test_a_list_has_names_scopes_versions_and_times(secrets: SecretService, clock: ManualClock) -> None:
    await secrets.set("B", VALUE, ["mail", "etl"])
    await clock.advance(60)
    await secrets.set("A", VALUE, all_pipelines=True)
    await secrets.set("B", VALUE, ["mail"])
    page = await secrets.list()
    assert [(item.name, item.pipeline, item.version) for item in page.secrets] == [
        ("A", "", 1),
        ("B", "etl", 1),
        ("B", "mail", 3),
    ]
    assert page.secrets[2].update_time - page.secrets[1].update_time == 60_000_000


async def test_a_list_is_read_page_by_page(secrets: SecretService) -> None:
    for name in ("A", "B"):
        await secrets.set(name, VALUE, PIPELINES)
    await secrets.set("B", VALUE, all_pipelines=True)
    seen, token = [], ""
    while True:
        page = await secrets.list(page_size=2, page_token=token)
        seen += [(item.name, item.pipeline) for item in page.secrets]
        token = page.next_page_token
        if not token:
            break
    assert seen == [
        *(("A", name) for name in PIPELINES),
        ("B", ""),
        *(("B", name) for name in PIPELINES),
    ]


@pytest.mark.parametrize("name", ["PATH", "FASTFLOW_TOKEN", "UV_CACHE_DIR", "9A", "A B", ""])
async def test_names_follow_the_rules_of_the_environment(secrets: SecretService, name: str) -> None:
    with pytest.raises(InvalidArgument, match="environment variable") as caught:
        await secrets.set(name, VALUE, ["etl"])
    assert [violation.field for violation in caught.value.violations] == ["name"]


@pytest.mark.parametrize(
    ("value", "said"),
    [(b"", "is empty"), (b"x\0y", "NUL"), (b"x" * (MAX_VALUE_BYTES + 1), "at most 65536 bytes, this one 65537")],
)
async def test_a_value_that_no_environment_can_hold_is_refused_unshown(
    secrets: SecretService, value: bytes, said: str
) -> None:
    with pytest.raises(InvalidArgument, match=said) as caught:
        await secrets.set("TOKEN", value, ["etl"])
    assert "x\0y" not in str(caught.value)
    assert "xxx" not in str(caught.value)


async def test_who_gets_a_secret_is_always_said(secrets: SecretService) -> None:
    with pytest.raises(InvalidArgument, match="say who gets it"):
        await secrets.set("TOKEN", VALUE)
    with pytest.raises(InvalidArgument, match="only one of pipelines, all_pipelines and source"):
        await secrets.set("TOKEN", VALUE, ["etl"], all_pipelines=True)


async def test_a_pipeline_that_is_not_there_is_named_with_the_nearest(secrets: SecretService) -> None:
    with pytest.raises(NotFound, match='no pipeline "ettl"; did you mean "etl"'):
        await secrets.set("TOKEN", VALUE, ["mail", "ettl"])
    assert (await secrets.list()).secrets == ()


async def test_a_repeated_call_stores_nothing_again(secrets: SecretService) -> None:
    first = await secrets.set("TOKEN", VALUE, ["etl", "mail"], request_id="r")
    assert await secrets.set("TOKEN", VALUE, ["etl", "mail"], request_id="r") == first
    for value, scopes in ((b"another value", ["etl", "mail"]), (VALUE, ["etl"])):
        with pytest.raises(AlreadyExists):
            await secrets.set("TOKEN", value, scopes, request_id="r")
    assert await given_to(secrets, "etl") == {"TOKEN": VALUE}


async def test_a_deleted_secret_is_hidden_at_once(secrets: SecretService) -> None:
    await secrets.set("TOKEN", VALUE, ["etl"])
    await secrets.delete("TOKEN", request_id="r")
    await secrets.delete("TOKEN", request_id="r")
    assert await given_to(secrets, "etl") == {}
    assert (await secrets.list()).secrets == ()
    with pytest.raises(NotFound, match='there is no secret "TOKEN"'):
        await secrets.delete("TOKEN")


async def test_of_several_scopes_the_one_to_delete_is_named(secrets: SecretService) -> None:
    await secrets.set("TOKEN", VALUE, ["etl"])
    await secrets.set("TOKEN", VALUE, all_pipelines=True)
    with pytest.raises(InvalidArgument, match='"TOKEN" is there for all pipelines, pipeline "etl": say which one'):
        await secrets.delete("TOKEN")
    with pytest.raises(NotFound, match='no secret "TOKEN" for pipeline "mail"; it is there for all pipelines'):
        await secrets.delete("TOKEN", ["mail"])
    await secrets.delete("TOKEN", all_pipelines=True)
    assert await given_to(secrets, "etl") == {"TOKEN": VALUE}
    assert await given_to(secrets, "mail") == {}


async def test_a_live_attempt_keeps_what_it_was_given(secrets: SecretService, store: Store) -> None:
    await secrets.set("TOKEN", VALUE, ["etl"])
    settle = await assign(store, {"TOKEN": 1})
    await secrets.delete("TOKEN")
    for _ in range(3):
        assert await secrets.prune() == 0
    assert [secret.value for secret in await secrets.values({"TOKEN": 1}, "etl")] == [VALUE]
    await settle()
    assert [await secrets.prune() for _ in range(3)] == [0, 1, 0]
    with pytest.raises(DataLoss, match='version 1 of the secret "TOKEN" is gone'):
        await secrets.values({"TOKEN": 1}, "etl")


async def test_an_assignment_that_is_just_written_keeps_what_it_read(secrets: SecretService, store: Store) -> None:
    await secrets.set("TOKEN", VALUE, ["etl"])
    read = {secret.name: secret.version for secret in await secrets.for_run("etl")}
    await secrets.delete("TOKEN")
    await secrets.prune()
    await assign(store, read)
    await secrets.prune()
    await secrets.prune()
    assert [secret.value for secret in await secrets.values(read, "etl")] == [VALUE]


async def test_old_values_are_removed_and_their_numbers_never_given_again(secrets: SecretService, store: Store) -> None:
    for number in range(3):
        await secrets.set("TOKEN", b"value %d" % number, ["etl"])
    await secrets.prune()
    assert await secrets.prune() == 2
    assert await given_to(secrets, "etl") == {"TOKEN": b"value 2"}
    await secrets.delete("TOKEN")
    await secrets.prune()
    assert await secrets.prune() == 1
    assert (await secrets.set("TOKEN", VALUE, ["etl"]))[0].version == 4


async def test_values_are_pruned_by_themselves(secrets: SecretService, clock: ManualClock) -> None:
    await secrets.set("TOKEN", VALUE, ["etl"])
    await secrets.delete("TOKEN")
    watching = asyncio.create_task(secrets.watch())

    async def read_on() -> None:
        async with asyncio.timeout(60):
            while await secrets.values({"TOKEN": 1}, "etl"):
                await clock.advance(PRUNE_SECONDS)
                await asyncio.sleep(0.001)

    with pytest.raises(DataLoss):
        await read_on()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_no_value_stands_in_the_database(secrets: SecretService, store: Store) -> None:
    await secrets.set("TOKEN", VALUE, ["etl"], request_id="r")
    sealed = secrets.seal(VALUE)
    assert secrets.open(sealed) == VALUE

    def everything(connection: Connection) -> str:
        return "".join(repr(connection.execute(select(table)).all()) for table in metadata.sorted_tables)

    for text in (await store.read(everything), repr(sealed)):
        assert VALUE.decode() not in text


async def test_no_value_is_shown_by_what_holds_it(secrets: SecretService, capsys: pytest.CaptureFixture[str]) -> None:
    stored = await secrets.set("TOKEN", VALUE, ["etl"])
    handed_out = await secrets.for_run("etl")
    await secrets.delete("TOKEN")
    shown = repr([stored, handed_out, secrets]) + "".join(capsys.readouterr())
    assert "TOKEN" in shown
    assert VALUE.decode() not in shown


async def test_a_key_file_that_does_not_belong_to_the_database_is_said_at_start(
    secrets: SecretService, store: Store, clock: ManualClock, tmp_path: Path
) -> None:
    async def pipelines() -> list[str]:
        return PIPELINES

    await secrets.check()
    await secrets.set("TOKEN", VALUE, ["etl"])
    await secrets.check()
    stranger = SecretService(store, clock, Sealer.load(tmp_path / "another.key"), pipelines)
    with pytest.raises(DataLoss, match=r"another\.key: database and key file belong together"):
        await stranger.check()
