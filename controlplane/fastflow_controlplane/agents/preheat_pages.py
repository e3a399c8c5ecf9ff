"""The border between messages about environments that are prepared ahead and the plain values of this package."""

from collections.abc import Iterator, Sequence

from fastflow.agent.v1 import gateway_pb2, preheat_pb2
from fastflow.v1 import pipelines_pb2

from fastflow_controlplane.agents.model import EnvironmentKey, EnvironmentResult
from fastflow_controlplane.agents.preheat import WantedEnvironment

PAGE_ITEMS = 1000
"""Items of about a hundred bytes on one page, well below the largest message."""
MAX_MESSAGE = 4000
MAX_PACKAGES = 1000
"""What is kept of one result: more than an agent tells, and no agent fills the memory."""


def preheat_pages(wanted: Sequence[WantedEnvironment]) -> Iterator[gateway_pb2.ConnectResponse]:
    """Gives the pages of a full set; there is always a last one."""
    for start in range(0, max(1, len(wanted)), PAGE_ITEMS):
        items = [
            preheat_pb2.PreheatItem(
                bundle_digest=each.bundle_digest, bundle_size=each.bundle_size, python_version=each.python_version
            )
            for each in wanted[start : start + PAGE_ITEMS]
        ]
        page = preheat_pb2.PreheatPage(items=items, last_page=start + PAGE_ITEMS >= len(wanted))
        yield gateway_pb2.ConnectResponse(preheat=page)


def read_results(report: preheat_pb2.PreheatReport) -> dict[EnvironmentKey, EnvironmentResult]:
    """Translates what an agent tells of environments; states of a later protocol are passed over."""
    read = {(each.bundle_digest, each.python_version): _result(each.environment) for each in report.results}
    return {key: result for key, result in read.items() if result is not None}


def _result(environment: pipelines_pb2.PipelineEnvironment) -> EnvironmentResult | None:
    state = pipelines_pb2.EnvironmentState.DESCRIPTOR.values_by_number.get(environment.state)
    if state is None:
        return None
    told = environment.HasField
    return EnvironmentResult(
        state=state.name.removeprefix("ENVIRONMENT_STATE_"),
        message=environment.message[:MAX_MESSAGE],
        duration_usec=environment.duration.ToMicroseconds() if told("duration") else None,
        packages=tuple(environment.packages[:MAX_PACKAGES]),
        prepare_time=environment.prepare_time.ToMicroseconds() if told("prepare_time") else None,
        retry_time=environment.retry_time.ToMicroseconds() if told("retry_time") else None,
    )
