"""A control plane killed at every one of its fail points: no run is lost, none is run twice, no byte is missing."""

import secrets

import pytest
from fastflow.service.failpoints import ControlPlanePoint

from tests.crash.scene import COUNTED_TO_THE_END, STOPPED_IN_TIME, Scene

OF_A_CANCEL = (ControlPlanePoint.CANCEL_COMMITTED,)
OF_RETENTION = (ControlPlanePoint.RUNS_REMOVED, ControlPlanePoint.LOGS_REMOVED, ControlPlanePoint.FILES_REMOVED)

pytestmark = pytest.mark.timeout(400)


class Crashes:
    """What holds with each runtime."""

    runtime: str

    @pytest.mark.parametrize("point", [point for point in ControlPlanePoint if point not in OF_A_CANCEL + OF_RETENTION])
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
