"""Removes code that no kept run was made of: bundles, and the objects of folders as they once were.

The code of every kept run stays, so that it can be repeated whatever was pushed since.
"""

import structlog

from fastflow_controlplane.clock import MICROSECONDS, Clock
from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries.retention import read_code

log = structlog.get_logger(__name__)

PRUNE_SECONDS = 3600.0
"""How often code is looked through: reading which code runs have costs a look at all of them."""
UNUSED_SECONDS = 3600.0
"""Code that was looked up within this time stays: a run of it may be about to be stored."""


class CodeRetention:
    """Looks at the start and then each PRUNE_SECONDS."""

    def __init__(self, store: Store, clock: Clock, catalog: Catalog) -> None:
        self._store = store
        self._clock = clock
        self._catalog = catalog

    async def run(self) -> None:
        """Works until cancelled; what fails is tried again."""
        while True:
            try:
                await self.tick()
            except Unavailable as error:
                log.warning("old code could not be removed", why=error.message)
            await self._clock.sleep(PRUNE_SECONDS)

    async def tick(self) -> None:
        """Looks once. Raises Unavailable."""
        unused_since = self._clock.now() / MICROSECONDS - UNUSED_SECONDS
        code = await self._store.read(read_code)
        await self._catalog.prune(code.bundles, code.trees, unused_since)
