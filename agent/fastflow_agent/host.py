"""Stands between stream and worker: decides whose word counts, and passes on what counts."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import structlog
from fastflow.agent.v1 import attempts_pb2, gateway_pb2

from fastflow_agent.conditions import Conditions, ConditionType
from fastflow_agent.desired import Desired
from fastflow_agent.health import Health
from fastflow_agent.identity import CLUSTER_FILE, Identity, IdentityGiven, Membership, save_membership
from fastflow_agent.logs.shipper import Shipper
from fastflow_agent.reconcile import AttemptNumber
from fastflow_agent.runtime.base import Facts
from fastflow_agent.settings import AgentSettings
from fastflow_agent.stream import wire
from fastflow_agent.stream.outbox import Outbox
from fastflow_agent.uvcache import UvCache
from fastflow_agent.uvcache.preheat import Key, Preheat, PreheatReport, Wanted
from fastflow_agent.worker import Worker

log = structlog.get_logger(__name__)

DEFAULT_ORPHAN_GRACE_SECONDS = 300.0
"""Used where Welcome names none: an operator has time to look."""


class AgentHost:
    """The agent as a stream sees it. In quarantine it keeps all, starts and stops nothing, and says why."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        membership: Membership,
        *,
        worker: Worker,
        shipper: Shipper,
        outbox: Outbox,
        health: Health,
        uvcache: UvCache,
        preheat: Preheat,
        conditions: Conditions,
        disk: Executor,
        data_dir: Path,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._membership = self._saved = membership
        self._worker = worker
        self._shipper = shipper
        self._outbox = outbox
        self._health = health
        self._uvcache = uvcache
        self._preheat = preheat
        self._conditions = conditions
        self._disk = disk
        self._data_dir = data_dir
        self._orphan_grace = DEFAULT_ORPHAN_GRACE_SECONDS
        self._saving: asyncio.Future[None] | None = None
        self.orphan_grace: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        """The grace for what the control plane does not know, once it named its whole desired state."""

    @property
    def cluster_id(self) -> str:
        """The cluster this agent belongs to; empty at first."""
        return self._membership.cluster_id

    def opening(self) -> tuple[gateway_pb2.Hello, list[gateway_pb2.InventoryPage]]:
        """The first messages of a stream."""
        self._worker.pause()
        self._shipper.hold()
        hello = wire.hello(self._settings, self._identity, self._membership, self._health.facts)
        return hello, list(wire.inventory(self._worker.reports))

    def welcomed(self, welcome: gateway_pb2.Welcome) -> bool:
        """See `SessionHost.welcomed`."""
        log.info(
            "connected",
            cluster=welcome.cluster_id,
            epoch=welcome.session_epoch,
            controlplane_version=welcome.controlplane_version,
        )
        if welcome.HasField("orphan_grace"):
            self._orphan_grace = wire.seconds(welcome.orphan_grace)
        if welcome.agent_id and welcome.agent_id != self._identity.agent_id and not self._worker.keys:
            raise IdentityGiven(welcome.agent_id)
        ours = self._membership.cluster_id
        if welcome.quarantine_reason:
            return self._quarantine(welcome.quarantine_reason)
        if welcome.accepted and welcome.cluster_id != ours:
            self._membership = Membership(welcome.cluster_id)
        elif ours and welcome.cluster_id != ours:
            return self._quarantine(
                f"the control plane belongs to cluster {welcome.cluster_id}, this agent to {ours}: connect it to its "
                f"own cluster, or stop it, delete {self._data_dir / CLUSTER_FILE} and start it to change over"
            )
        self._membership = replace(self._membership, cluster_id=welcome.cluster_id)
        self._save()
        return True

    def full(self, words: list[Desired], revision: int) -> bool:
        """See `SessionHost.full`."""
        if revision < self._membership.last_revision:
            return self._quarantine(
                f"the control plane's revision {revision} is older than {self._membership.last_revision}, which this "
                "agent has seen: its database was restored from a backup. To accept that, stop this agent, delete "
                f"{self._data_dir / CLUSTER_FILE} and start it"
            )
        self._conditions.clear(ConditionType.QUARANTINED)
        self._worker.take_full(words, self._orphan_grace)
        self._membership = replace(self._membership, last_revision=revision)
        self._outbox.open_events(self._worker.keys)
        self._shipper.go_on()
        if not self.orphan_grace.done():
            self.orphan_grace.set_result(self._orphan_grace)
        return True

    def drain(self, draining: bool) -> None:
        """See `SessionHost.drain`."""
        self._worker.drain(draining)

    def delta(self, words: list[Desired], revision: int) -> None:
        """See `SessionHost.delta`."""
        self._worker.take_delta(words)
        self._membership = replace(self._membership, last_revision=revision)

    def acknowledged(self, ack: attempts_pb2.AttemptEventAck) -> None:
        """See `SessionHost.acknowledged`."""
        attempt = ack.run_id, ack.attempt
        self._worker.acknowledge(attempt, ack.sequence, stored=not ack.rejection)
        if ack.rejection == attempts_pb2.EVENT_REJECTION_GAP:
            self._close_gap(attempt, ack.sequence)
            return
        self._outbox.acknowledged(attempt)
        if ack.rejection:
            name = wire.name(attempts_pb2.EventRejection.DESCRIPTOR, ack.rejection).removeprefix("EVENT_REJECTION_")
            log.info("event is settled without effect", attempt=attempt, sequence=ack.sequence, reason=name)

    def beat(self) -> None:
        """See `SessionHost.beat`."""
        self._worker.converge()
        self._save()

    def preheat(self, wanted: list[Wanted]) -> None:
        """See `SessionHost.preheat`."""
        self._preheat.take(wanted)

    def preheat_changed(self, wanted: list[Wanted], gone: list[Key]) -> None:
        """See `SessionHost.preheat_changed`."""
        self._preheat.change(wanted, gone)

    def preheat_report(self) -> PreheatReport:
        """See `SessionHost.preheat_report`."""
        return self._preheat.report()

    def environments(self) -> list[str]:
        """See `SessionHost.environments`."""
        return self._uvcache.environments()

    def facts(self) -> Facts:
        """See `SessionHost.facts`."""
        return self._health.facts

    async def aclose(self) -> None:
        """Keep the last revision seen."""
        self._save()
        if self._saving is not None:
            await asyncio.wait([self._saving])

    def _close_gap(self, attempt: AttemptNumber, sequence: int) -> None:
        found = self._worker.unacknowledged(attempt)
        if found and found[1] and found[1][0].sequence <= sequence + 1:
            self._outbox.rewind(found[0], sequence)
        else:
            # Acknowledged once and dropped here: sending again what came too far would only go round in circles.
            log.error("the control plane misses events that it had acknowledged", attempt=attempt, sequence=sequence)

    def _quarantine(self, reason: str) -> bool:
        self._worker.keep_still()
        # A control plane that does not know an attempt would have its log forgotten.
        self._shipper.hold(cut=True)
        self._conditions.hold(ConditionType.QUARANTINED, reason)
        return False

    def _save(self) -> None:
        """Keep the membership, off the loop; one write at a time, and a later beat makes up for a failed one."""
        if self._membership == self._saved or (self._saving is not None and not self._saving.done()):
            return
        membership = self._membership
        loop = asyncio.get_running_loop()
        self._saving = loop.run_in_executor(self._disk, save_membership, self._data_dir, membership)
        self._saving.add_done_callback(lambda done: self._was_saved(done, membership))

    def _was_saved(self, done: asyncio.Future[None], membership: Membership) -> None:
        if done.cancelled():
            return
        if error := done.exception():
            log.warning("membership not kept", error=str(error))
        else:
            self._saved = membership
