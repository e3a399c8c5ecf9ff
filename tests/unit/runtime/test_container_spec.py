"""What the engine is told, where no container needs to run to see that it is right."""

from pathlib import Path
from typing import Any

import pytest
from fastflow_agent.model import Limits, SlotId
from fastflow_agent.runtime.base import Egress, PreparerSpec, PreparerStep, RuntimeFault, SlotPaths, SlotSpec
from fastflow_agent.runtime.container_spec import Folders, egress_environment, preparer_container, slot_container
from fastflow_agent.runtime.docker_image import RunnerImage
from fastflow_agent.runtime.docker_options import DockerOptions
from fastflow_agent.runtime.interpreters import Interpreters

SLOT = SlotId("0123456789abcdef")
IMAGE = RunnerImage("sha256:abc", Interpreters("0.9.1", "/usr/bin/python3", {"3.12": "/opt/python3.12"}))
OPTIONS = DockerOptions("agent", Path("/data"), Path("/run/env"), "fastflow/runner:1")


def config(milli_cores: int = 1500, data: str = "/data", **spec: Any) -> dict[str, Any]:
    paths = SlotPaths.of(Path(data), Path("/run/env"), SLOT)
    values = {"code": Path("/data/code"), "cache": Path("/data/uv/1"), **spec}
    slot = SlotSpec(slot=SLOT, limits=Limits(milli_cores, 1 << 30), paths=paths, **values)
    return slot_container(slot, OPTIONS, IMAGE, Path("/data/template/x"), "/fastflow/x")


@pytest.mark.parametrize(("milli_cores", "quota"), [(10, 1000), (250, 25_000), (1000, 100_000), (1500, 150_000)])
def test_cpu_is_a_quota_of_its_period(milli_cores: int, quota: int) -> None:
    host = config(milli_cores)["HostConfig"]
    assert (host["CpuPeriod"], host["CpuQuota"]) == (100_000, quota)
    assert "NanoCpus" not in host


def test_memory_and_memory_with_swap_are_the_same() -> None:
    host = config()["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 1 << 30


def test_the_image_is_named_by_its_content_and_the_interpreter_by_its_path() -> None:
    made = config(python_version="3.12", offline=True)
    assert made["Image"] == "sha256:abc"
    assert made["Cmd"] == ["/fastflow/start", "/opt/python3.12", "--offline"]


def test_only_a_cache_that_is_whole_makes_uv_work_offline() -> None:
    assert config()["Cmd"] == ["/fastflow/start", "/usr/bin/python3"]


def preparer(step: PreparerStep) -> dict[str, Any]:
    spec = PreparerSpec("name", Path("/data/code"), Path("/data/staged"), "3.12", step=step)
    folders = Folders(Path("/t"), spec.code, Path("/log"), Path("/out"), Path("/tmp/x"), Path("/env"))
    return preparer_container(spec, OPTIONS, IMAGE, folders, "/fastflow")


@pytest.mark.parametrize(
    ("step", "program", "network"),
    [
        (PreparerStep.FETCH, ["/fastflow/fetch", "/opt/python3.12"], "bridge"),
        (PreparerStep.INSTALL, ["/fastflow/prepare", "/opt/python3.12", "--offline"], "none"),
        (PreparerStep.BUILD, ["/fastflow/prepare", "/opt/python3.12"], "bridge"),
    ],
)
def test_a_preparer_has_the_interpreter_that_is_asked_for_and_a_network_only_where_it_fetches(
    step: PreparerStep, program: list[str], network: str
) -> None:
    made = preparer(step)
    assert (made["Cmd"], made["HostConfig"]["NetworkMode"]) == (program, network)


def test_a_preparer_gives_way_to_runs() -> None:
    made, run = preparer(PreparerStep.BUILD)["HostConfig"], config()["HostConfig"]
    assert made["CgroupParent"] == "/fastflow"
    # A run's own parent has the kernel's default.
    assert made["CpuShares"] < 1024 // 8
    assert "CpuShares" not in run
    assert run["OomScoreAdj"] < made["OomScoreAdj"] <= 1000
    assert made["Memory"] == made["MemorySwap"] == OPTIONS.preparer_memory_bytes


@pytest.mark.parametrize("data", ["/da,ta", "/da:ta", "/da\\ta"])
def test_paths_that_no_overlay_can_name_are_refused(data: str) -> None:
    with pytest.raises(RuntimeFault, match="choose a data folder without"):
        config(data=data)


def test_relative_paths_become_absolute() -> None:
    mounts = config(data="data", code=Path("code"), cache=Path("cache"))["HostConfig"]["Mounts"]
    assert all(mount["Source"].startswith("/") for mount in mounts if mount["Type"] == "bind")
    (volume,) = (mount for mount in mounts if mount["Type"] == "volume")
    layers = volume["VolumeOptions"]["DriverConfig"]["Options"]["o"].split(",")
    assert all(layer.split("=")[1].startswith("/") for layer in layers)


def test_without_settings_programs_are_told_nothing_of_the_world() -> None:
    assert egress_environment(Egress()) == {}
