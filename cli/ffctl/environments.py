"""How far the packages of a pipeline are on the agents, as people read it."""

import shlex
from collections.abc import Iterable, Iterator

from fastflow.v1 import pipelines_pb2
from rich.console import RenderableType
from rich.text import Text

from ffctl import wording
from ffctl.output import cell

NONE_NEEDED = "none"


def summary(pipeline: pipelines_pb2.Pipeline) -> Text:
    """Returns in a word how far packages are: the worst state, as "FAILED 1/3" where not all agents are in it."""
    if not pipeline.HasField("environment_counts"):
        # An older server tells nothing, and none tells of a pipeline that it would not run.
        return cell(wording.UNKNOWN if pipeline.has_requirements or pipeline.has_script_header else NONE_NEEDED)
    counts = pipeline.environment_counts
    numbers = {
        "FAILED": counts.failed,
        "WAITING": counts.waiting,
        "PREPARING": counts.preparing,
        "READY": counts.ready,
    }
    total = sum(numbers.values())
    for state, number in numbers.items():
        if number:
            return cell(state if number == total else f"{state} {number}/{total}", wording.STYLES[state])
    return cell(wording.UNKNOWN)


def failure(pipeline: pipelines_pb2.Pipeline) -> str:
    """Returns in a sentence that, and on how many agents, packages can not be prepared; "" = on none."""
    counts = pipeline.environment_counts
    if not counts.failed:
        return ""
    total = counts.failed + counts.waiting + counts.preparing + counts.ready
    where = f" on {counts.failed} of {total} agents" if counts.failed < total else ""
    return f"packages can not be prepared{where}: ffctl pipelines show {shlex.quote(pipeline.name)}"


def environment_rows(pipeline: pipelines_pb2.Pipeline, now: float) -> list[tuple[str, RenderableType]]:
    """Returns the rows on a pipeline's packages, agent by agent; `now` is seconds since 1970 UTC."""
    rows: list[tuple[str, RenderableType]] = []
    for environment in pipeline.environments:
        rows.append(("" if rows else "Packages", _cell(environment, now)))
        rows.extend(("", cell(line)) for line in _lines(environment, pipeline))
    return rows


def _cell(environment: pipelines_pb2.PipelineEnvironment, now: float) -> Text:
    state = wording.environment_state(environment.state)
    text = cell(f"{environment.agent}  ").append(state, style=wording.STYLES.get(state, ""))
    parts = ", ".join(_parts(environment, now))
    return text.append(f"  {parts}" if parts else "")


def _parts(environment: pipelines_pb2.PipelineEnvironment, now: float) -> Iterator[str]:
    if environment.state == pipelines_pb2.ENVIRONMENT_STATE_READY:
        if environment.HasField("duration"):
            yield f"took {wording.span(wording.seconds_of(environment.duration))}"
        if environment.HasField("prepare_time"):
            yield wording.ago(environment.prepare_time, now)
    if environment.HasField("retry_time"):
        left = wording.seconds_of(environment.retry_time) - now
        yield "tried again soon" if left < 1 else f"tried again in {wording.span(left)}"


def _lines(environment: pipelines_pb2.PipelineEnvironment, pipeline: pipelines_pb2.Pipeline) -> Iterable[str]:
    if environment.packages:
        yield ", ".join(environment.packages)
    yield from environment.message.splitlines()
    if environment.state == pipelines_pb2.ENVIRONMENT_STATE_FAILED:
        where = "requirements.txt" if pipeline.has_requirements else "the header of main.py"
        yield (
            f"A run would fail alike. Mend {where}, which is tried at once; or, where the packages can not be reached, "
            f"index, proxy and CA bundle of the agent."
        )
