"""A control plane killed at every one of its fail points: no run is lost, none is run twice, no byte is missing."""

import secrets

import pytest
from fastflow.service.failpoints import ControlPlanePoint

from tests.crash.scene import COUNTED_TO_THE_END, FEW, MANY, STOPPED_IN_TIME, Scene, halted_and_went_on

OF_A_CANCEL = (ControlPlanePoint.CANCEL_COMMITTED,)
OF_A_MESSAGE = (ControlPlanePoint.ASSIGNMENT_SENT, ControlPlanePoint.FORGET_SENT)
OF_A_LOG = (ControlPlanePoint.LOG_WRITTEN, ControlPlanePoint.LOG_SYNCED)
OF_RETENTION = (ControlPlanePoint.RUNS_REMOVED, ControlPlanePoint.LOGS_REMOVED, ControlPlanePoint.FILES_REMOVED)

pytestmark = pytest.mark.timeout(400)


class Crashes:
    """What holds with each runtime."""

    runtime: str

    @pytest.mark.parametrize(
        "point", [point for point in ControlPlanePoint if point not in OF_A_CANCEL + OF_A_MESSAGE + OF_RETENTION]
    )
    def test_a_run_ends_once_with_its_result_and_its_log(self, scene: Scene, point: ControlPlanePoint) -> None:
        page = secrets.token_hex(4)
        scene.arm(point)
        scene.ask_for_run("counter", page)
        scene.await_death(scene.controlplane, point)
        scene.controlplane.start()
        # A caller who got no answer asks again; one who got one gets the same.
        run = scene.create_run("counter", page)
        scene.await_end(run)
        scene.check(run, page, COUNTED_TO_THE_END)

    @pytest.mark.parametrize("point", OF_A_MESSAGE)
    def test_a_message_that_reached_its_agent_is_as_good_as_before_the_death(
        self, scene: Scene, point: ControlPlanePoint
    ) -> None:
        page = secrets.token_hex(4)
        taken_in = point is ControlPlanePoint.FORGET_SENT
        with scene.frozen(scene.controlplane, point, lambda: scene.ask_for_run("counter", page)):
            # An assignment makes a slot, FORGET removes it.
            scene.until(lambda: bool(scene.slot_folders()) is not taken_in, f"the agent to hear of {point}", 60)
        scene.controlplane.start()
        run = scene.create_run("counter", page)
        scene.await_end(run)
        scene.check(run, page, COUNTED_TO_THE_END)

    @pytest.mark.parametrize("point", OF_A_LOG)
    @pytest.mark.parametrize("lines", [FEW, MANY])
    def test_a_log_goes_on_behind_what_is_stored(self, scene: Scene, point: ControlPlanePoint, lines: int) -> None:
        page = secrets.token_hex(4)
        run = scene.create_run(f"halting-{lines}", page)
        scene.await_halt(run, lines)
        scene.arm(point)
        scene.let_go()
        scene.await_death(scene.controlplane, point)
        scene.controlplane.start()
        scene.await_end(run)
        scene.check(run, page, halted_and_went_on(lines))

    @pytest.mark.parametrize("point", OF_A_CANCEL)
    def test_a_cancel_is_carried_out_though_nobody_repeats_it(self, scene: Scene, point: ControlPlanePoint) -> None:
        page = secrets.token_hex(4)
        scene.arm(point)
        run = scene.create_run("patient", page)
        scene.await_word(page, "began")
        scene.cancel(run)
        scene.await_death(scene.controlplane, point)
        scene.controlplane.start()
        scene.await_end(run)
        scene.check(run, page, STOPPED_IN_TIME)


class TestPlainProcesses(Crashes):
    """With the process runtime."""

    runtime = "process"


class TestContainers(Crashes):
    """With the Docker runtime."""

    runtime = "docker"
