"""The border between messages about environments that are prepared ahead and the plain values of this package."""

from collections.abc import Iterator, Sequence

from fastflow.agent.v1 import preheat_pb2
from fastflow.v1 import pipelines_pb2

from fastflow_controlplane.agents.model import EnvironmentReport, EnvironmentResult
from fastflow_controlplane.agents.wanted import Difference, WantedEnvironment

PAGE_ITEMS = 1000
"""Items of about a hundred bytes on one page, well below the largest message."""
MAX_MESSAGE = 4000
MAX_PACKAGES = 1000
"""What is kept of one result: more than an agent tells, and no agent fills the memory."""


def full_pages(wanted: Sequence[WantedEnvironment]) -> Iterator[preheat_pb2.PreheatPage]:
    """Gives the pages of a full set; there is always a last one."""
    for start in range(0, max(1, len(wanted)), PAGE_ITEMS):
        items = map(_item, wanted[start : start + PAGE_ITEMS])
        yield preheat_pb2.PreheatPage(items=items, last_page=start + PAGE_ITEMS >= len(wanted))


def difference_pages(difference: Difference) -> Iterator[preheat_pb2.PreheatPage]:
    """Gives a difference in pages, each of which holds for itself; no page where there is none."""
    for start in range(0, max(len(difference.items), len(difference.gone)), PAGE_ITEMS):
        cut = slice(start, start + PAGE_ITEMS)
        yield preheat_pb2.PreheatPage(
            items=map(_item, difference.items[cut]),
            last_page=True,
            difference=True,
            gone=(preheat_pb2.PreheatKey(bundle_digest=key[0], python_version=key[1]) for key in difference.gone[cut]),
        )


def _item(wanted: WantedEnvironment) -> preheat_pb2.PreheatItem:
    return preheat_pb2.PreheatItem(
        bundle_digest=wanted.bundle_digest, bundle_size=wanted.bundle_size, python_version=wanted.python_version
    )


def read_report(report: preheat_pb2.PreheatReport) -> EnvironmentReport:
    """Translates what an agent tells of environments; states of a later protocol are passed over."""
    read = {(each.bundle_digest, each.python_version): _result(each.environment) for each in report.results}
    return EnvironmentReport(
        results={key: result for key, result in read.items() if result is not None},
        gone=[(key.bundle_digest, key.python_version) for key in report.gone],
        full=report.full,
    )


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
