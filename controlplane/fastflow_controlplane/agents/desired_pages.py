"""Cuts what an agent shall do into pages that fit a message."""

from collections.abc import Iterable, Iterator

from fastflow.agent.v1 import desired_pb2

from fastflow_controlplane.agents import wire
from fastflow_controlplane.agents.assignments import Deliveries, Delivery

PAGE_ATTEMPTS = 200
PAGE_BYTES = 1024 * 1024
"""A page ends behind either, well below the largest message."""


def full_pages(deliveries: Deliveries) -> Iterator[desired_pb2.DesiredPage]:
    """Gives the pages of a full set; there is always a last one."""
    pages = list(_paged(deliveries.attempts)) or [[]]
    for number, attempts in enumerate(pages, start=1):
        page = desired_pb2.DesiredPage(
            revision=deliveries.revision, full=True, last_page=number == len(pages), attempts=attempts
        )
        if number == len(pages):
            page.agent.CopyFrom(agent_of(deliveries))
        yield page


def agent_of(deliveries: Deliveries) -> desired_pb2.DesiredAgent:
    """Returns what is desired of the agent itself."""
    message = desired_pb2.DesiredAgent(draining=deliveries.draining)
    if deliveries.drain_deadline_time is not None:
        message.drain_deadline.FromMicroseconds(deliveries.drain_deadline_time)
    return message


def delta_pages(
    deliveries: Deliveries, sent: int, agent_sent: desired_pb2.DesiredAgent
) -> Iterator[desired_pb2.DesiredPage]:
    """Gives differences as pages whose revisions form a chain that begins at `sent`.

    First what is desired of the agent itself, where it differs from `agent_sent`: an attempt that comes with the same
    set is not to be begun by an agent that is drained. An attempt that was missing before may have an older revision
    than `sent`.
    """
    agent = agent_of(deliveries)
    if agent != agent_sent:
        yield desired_pb2.DesiredPage(revision=sent, previous_revision=sent, last_page=True, agent=agent)
    revisions = {(delivery.key.run_id, delivery.key.attempt): delivery.revision for delivery in deliveries.attempts}
    for attempts in _paged(deliveries.attempts):
        last = attempts[-1].key
        revision = max(sent, revisions[last.run_id, last.attempt])
        yield desired_pb2.DesiredPage(revision=revision, previous_revision=sent, last_page=True, attempts=attempts)
        sent = revision


def _paged(deliveries: Iterable[Delivery]) -> Iterator[list[desired_pb2.DesiredAttempt]]:
    page: list[desired_pb2.DesiredAttempt] = []
    size = 0
    for delivery in deliveries:
        message = wire.desired_attempt(delivery)
        if page and (len(page) >= PAGE_ATTEMPTS or size + message.ByteSize() > PAGE_BYTES):
            yield page
            page, size = [], 0
        page.append(message)
        size += message.ByteSize()
    if page:
        yield page
