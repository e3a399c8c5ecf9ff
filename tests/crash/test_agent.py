"""An agent killed at every one of its fail points: the next one ends the run once, truly, with its whole log."""

import secrets
from functools import partial

import pytest
from fastflow.service.failpoints import AgentPoint, ControlPlanePoint

from tests.crash.scene import COUNTED_TO_THE_END, COUNTER, NEVER_BEGUN, STOPPED_IN_TIME, Scene

OF_A_STOP = (AgentPoint.STOPPING, AgentPoint.SIGNAL_SENT, AgentPoint.SIGNALLED)
AFTER_A_STOP = (AgentPoint.END_SEEN, AgentPoint.EXITED, AgentPoint.CONTAINER_REMOVED)
OF_A_PREPARATION = (
    AgentPoint.STAGED,
    AgentPoint.PREPARER_RELEASED,
    AgentPoint.PACKAGES_INSTALLED,
    AgentPoint.GENERATION_MOVED,
    AgentPoint.GENERATION_PUBLISHED,
)
OVERTAKEN = (AgentPoint.LOG_SEALED, AgentPoint.SEALED)
"""Where FORGET comes before the news that the log is stored, these are not passed: so it is held back."""
TRIES = 5
"""As a rule the first does: the news is sent as soon as FORGET is due, which takes longer to be made."""

pytestmark = pytest.mark.timeout(400)


class Crashes:
    """What holds with each runtime."""

    runtime: str

    @pytest.mark.parametrize(
        "point", [point for point in AgentPoint if point not in OF_A_STOP + OF_A_PREPARATION + OVERTAKEN]
    )
    def test_a_run_ends_once_with_its_result_and_its_log(self, scene: Scene, point: AgentPoint) -> None:
        page = secrets.token_hex(4)
        scene.arm(point)
        run = scene.create_run("counter", page)
        scene.await_death(scene.agent, point)
        scene.agent.start()
        scene.await_end(run)
        scene.check(run, page, COUNTED_TO_THE_END)

    @pytest.mark.parametrize("point", OVERTAKEN)
    def test_a_log_that_is_stored_is_stored_once(self, scene: Scene, point: AgentPoint) -> None:
        for _ in range(TRIES):
            page = secrets.token_hex(4)
            died = scene.dies_before(ControlPlanePoint.FORGET_DUE, point, partial(scene.create_run, "counter", page))
            if died:
                scene.agent.start()
            run = scene.create_run("counter", page)
            scene.await_end(run)
            scene.check(run, page, COUNTED_TO_THE_END)
            if died:
                return
        pytest.fail(f"FORGET overtook the news in all of {TRIES} runs")

    @pytest.mark.parametrize("point", [*OF_A_STOP, *AFTER_A_STOP])
    def test_a_cancel_is_carried_out(self, scene: Scene, point: AgentPoint) -> None:
        page = secrets.token_hex(4)
        scene.arm(point)
        run = scene.create_run("patient", page)
        scene.await_word(page, "began")
        scene.cancel(run)
        scene.await_death(scene.agent, point)
        scene.agent.start()
        scene.await_end(run)
        scene.check(run, page, STOPPED_IN_TIME)

    @pytest.mark.parametrize("point", OF_A_PREPARATION)
    def test_an_environment_is_prepared_after_all(self, scene: Scene, point: AgentPoint) -> None:
        page = secrets.token_hex(4)
        scene.arm(point)
        run = scene.create_run(scene.new_pipeline(COUNTER), page)
        scene.await_death(scene.agent, point)
        scene.agent.start()
        scene.await_end(run)
        scene.check(run, page, COUNTED_TO_THE_END)

    @pytest.mark.parametrize("point", [AgentPoint.PREPARER_RELEASED])
    def test_a_run_that_is_cancelled_before_its_agent_is_back_never_begins(
        self, scene: Scene, point: AgentPoint
    ) -> None:
        page = secrets.token_hex(4)
        scene.arm(point)
        run = scene.create_run(scene.new_pipeline(COUNTER), page)
        scene.await_death(scene.agent, point)
        scene.cancel(run)
        scene.agent.start()
        scene.await_end(run)
        scene.check(run, page, NEVER_BEGUN)


class TestPlainProcesses(Crashes):
    """With the process runtime."""

    runtime = "process"


class TestContainers(Crashes):
    """With the Docker runtime."""

    runtime = "docker"
