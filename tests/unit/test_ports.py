"""Ports that tests hold for the programs that they start."""

import errno
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.ports import HeldPort


@pytest.fixture
def held() -> Iterator[HeldPort]:
    with closing(HeldPort()) as port:
        yield port


def test_programs_listen_at_a_held_port_one_after_the_other(held: HeldPort) -> None:
    for _ in range(2):
        with socket.create_server(("127.0.0.1", held.number)), socket.create_connection(("127.0.0.1", held.number)):
            pass


def test_nobody_answers_at_a_held_port(held: HeldPort) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", held.number))


def test_a_held_port_is_free_for_nobody_else(held: HeldPort) -> None:
    with socket.socket() as other, pytest.raises(OSError, match="in use") as taken:
        other.bind(("127.0.0.1", held.number))
    assert taken.value.errno == errno.EADDRINUSE
