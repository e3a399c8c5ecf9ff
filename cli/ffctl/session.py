"""One command's conversation with the server."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import click
from fastflow.variables import without_effect

from ffctl.address import token
from ffctl.connection import Connection
from ffctl.interrupts import signals_wake_the_loop
from ffctl.options import server
from ffctl.output import say

PAGE = 1000
"""Largest page the server sends; fewer calls for long lists."""

Result = TypeVar("Result")


def connected(context: click.Context, work: Callable[[Connection], Awaitable[Result]]) -> Result:
    """Runs `work` with a connection to the server that the command line names, and returns its result.

    Here, and in the programs that ffctl starts, a variable that has no effect may be what somebody wonders about.
    """
    for sentence in without_effect(os.environ):
        say(f"warning: {sentence}")

    async def converse() -> Result:
        with signals_wake_the_loop():
            async with Connection(server(context), token()) as connection:
                return await work(connection)

    return asyncio.run(converse())


def ask(context: click.Context, service: str, method: str, request: Any) -> Any:
    """Makes the one call a command consists of: `method` of the stub `service` of Connection."""

    async def call(connection: Connection) -> Any:
        return await connection.call(getattr(getattr(connection, service), method), request, on_lost=still_trying)

    return connected(context, call)


async def pages(
    connection: Connection,
    method: Any,
    request: Any,
    field: str,
    limit: int = 0,
    on_page: Callable[[Any], None] = lambda answer: None,
) -> tuple[list[Any], bool]:
    """Returns up to `limit` (0 = all) messages of a list call, and whether there are more.

    `field` is the repeated field of the answer; `on_page` gets each whole answer.
    """
    found: list[Any] = []
    while True:
        request.page_size = min(PAGE, limit - len(found)) if limit else PAGE
        answer = await connection.call(method, request, on_lost=still_trying)
        messages: Sequence[Any] = getattr(answer, field)
        found += messages
        on_page(answer)
        request.page_token = answer.next_page_token
        if not answer.next_page_token or (limit and len(found) >= limit):
            return found, bool(answer.next_page_token)


def still_trying(_explanation: str) -> None:
    """Tells a waiting person why nothing happens; the explanation follows if it stays so."""
    say("no answer yet; trying again for a few seconds")
