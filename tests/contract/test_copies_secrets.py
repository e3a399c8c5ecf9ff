"""What PostgreSQL's programs show and know while they copy a database: arguments are for everybody to read."""

from pathlib import Path

import pytest
from fastflow_controlplane.errors import FailedPrecondition
from fastflow_controlplane.store import server_copies
from fastflow_controlplane.store.copies import back_up, restore

from tests.contract.databases import execute, opened
from tests.contract.rows import Rows
from tests.postgres import PostgresServer
from tests.postgres.server import PASSWORD

KEY_PASSWORD = "of-the-client-key"

WITNESS = """#!/bin/sh
cat /proc/$$/cmdline > {seen}.arguments
cat /proc/$$/environ > {seen}.environment
test -z "$PGSERVICEFILE" || cat "$PGSERVICEFILE" > {seen}.service
exec {program} "$@"
"""
"""Runs the real program, once it has kept what everybody, or the user of the control plane, can see of it."""


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with what was seen of the programs, each named "PROGRAM.WHAT"."""
    folder = tmp_path / "seen"
    folder.mkdir()
    find = server_copies._program

    def witnessed(name: str) -> str:
        witness = folder / name
        witness.write_text(WITNESS.format(seen=witness, program=find(name)))
        witness.chmod(0o700)
        return str(witness)

    monkeypatch.setattr(server_copies, "_program", witnessed)
    return folder


def with_secrets_in_the_query(url: str) -> str:
    return f"{url.replace(f':{PASSWORD}@', '@')}?password={PASSWORD}&sslpassword={KEY_PASSWORD}"


async def test_passwords_in_the_query_of_a_url_are_in_no_argument_and_known_to_who_needs_them_alone(
    postgres: PostgresServer, tmp_path: Path, seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTFLOW_TOKEN", "t0ken-of-the-api")
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/own-authorities.pem")
    copy = tmp_path / "copy"
    with postgres.empty_database() as url:
        url = with_secrets_in_the_query(url)
        async with opened(url) as store:
            kept = await Rows(store).finished()
            back_up(url, copy)
            await Rows(store).run()
        restore(url, copy, replace=True)
        assert execute(url, "SELECT id FROM runs") == [kept]
    for program in ("pg_dump", "pg_restore", "psql"):
        arguments, environment = ((seen / f"{program}.{what}").read_text() for what in ("arguments", "environment"))
        assert str(copy) in arguments or "127.0.0.1" in arguments, "it was seen"
        for secret in (PASSWORD, KEY_PASSWORD):
            assert secret not in arguments
        assert "t0ken-of-the-api" not in environment
        assert "SSL_CERT_FILE=/etc/own-authorities.pem" in environment, "sslrootcert=system asks OpenSSL"
        needs_it = program != "pg_restore"
        assert (PASSWORD in environment) is needs_it
        assert (seen / f"{program}.service").exists() is needs_it
    assert (seen / "pg_dump.service").read_text() == f"[fastflow]\nsslpassword={KEY_PASSWORD}\n"
    left = [part for part in (seen / "pg_dump.environment").read_text().split("\0") if "PGSERVICEFILE" in part]
    assert not Path(left[0].partition("=")[2]).parent.exists()


@pytest.mark.parametrize(
    ("query", "why"),
    [
        (
            f"sslpassword={KEY_PASSWORD}&service=mine",
            "and its service= names a service: put sslpassword into the service's file",
        ),
        (f"sslpassword={KEY_PASSWORD}%20", "sslpassword in database_url begins or ends with a blank"),
    ],
)
async def test_a_password_that_programs_can_not_be_told_is_refused_and_not_repeated(
    postgres: PostgresServer, tmp_path: Path, query: str, why: str
) -> None:
    with postgres.empty_database() as url:
        async with opened(url):
            pass
        with pytest.raises(FailedPrecondition, match=why) as caught:
            back_up(f"{url}?{query}", tmp_path / "copy")
    assert KEY_PASSWORD not in str(caught.value)
    assert not (tmp_path / "copy").exists()


async def test_a_service_of_the_environment_is_named_where_it_leaves_no_way_to_tell_a_password(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = tmp_path / "services"
    services.write_text("[mine]\napplication_name=mine\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    with postgres.empty_database() as url:
        async with opened(url):
            pass
        monkeypatch.setenv("PGSERVICE", "mine")
        with pytest.raises(FailedPrecondition, match="and PGSERVICE in the environment names a service: put"):
            back_up(f"{url}?sslpassword={KEY_PASSWORD}", tmp_path / "copy")
