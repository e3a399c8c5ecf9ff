"""One cluster for all crashes of a class; each test has its programs die and come back."""

from collections.abc import Iterator

import pytest
from fastflow.service.failpoints import VARIABLE

from tests.cluster import Cluster
from tests.cluster.api import Api
from tests.cluster.ledger import Ledger
from tests.crash.scene import ARMED, COUNTED_TO_THE_END, COUNTER, FEW, MANY, PATIENT, Scene, halting
from tests.slots import bridge_address

PROBE_SECONDS = "0.5"
"""Soon enough that no test waits for it."""


@pytest.fixture(scope="class")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane, and an agent with the runtime that the class names."""
    folder = tmp_path_factory.mktemp("crash")
    armed = {VARIABLE: f"@{folder / ARMED}"}
    settings = {**armed, "FASTFLOW_RECONNECT_INITIAL": "0.1", "FASTFLOW_RECONNECT_MAXIMUM": PROBE_SECONDS}
    if request.cls.runtime == "docker":
        settings["FASTFLOW_IMAGE"] = request.getfixturevalue("runner_image")
    with Cluster(folder / "cluster", request.cls.runtime, **armed) as made:
        made.add_pipeline("counter", COUNTER)
        made.add_pipeline("patient", PATIENT)
        for lines in (FEW, MANY):
            made.add_pipeline(f"halting-{lines}", halting(lines))
        made.controlplane.start()
        made.add_agent("worker-1", **settings)
        yield made


@pytest.fixture(scope="class")
def shared_scene(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The scene of the class, which has seen a run without any crash."""
    host = bridge_address() if cluster.runtime == "docker" else "127.0.0.1"
    with Ledger(tmp_path_factory.mktemp("crash") / "ledger", host) as ledger, Api(cluster.server) as api:
        scene = Scene(cluster, ledger, api)
        run = scene.create_run("counter", "no-crash")
        scene.await_end(run)
        scene.check(run, "no-crash", COUNTED_TO_THE_END)
        yield scene


@pytest.fixture
def scene(shared_scene: Scene) -> Scene:
    """The scene as every test begins it: all programs live."""
    shared_scene.settle()
    return shared_scene
