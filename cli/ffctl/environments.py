"""How far the packages of a pipeline are on the agents, as people read it."""

from collections.abc import Iterable, Iterator

from fastflow.v1 import pipelines_pb2
from rich.console import RenderableType
from rich.text import Text

from ffctl import wording
from ffctl.output import cell


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
