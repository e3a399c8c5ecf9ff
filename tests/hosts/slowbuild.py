"""A pipeline whose package takes a while to build, and what is seen of its preparer meanwhile."""

from fastflow_agent.runtime.docker_options import DockerOptions

from tests.hosts.lab.cluster import HostAgent, HostCluster
from tests.slots import built_source, source_archive, tiny_wheel

SECONDS = 120.0
"""For a preparation in a guest: a container or two beside the build."""
WHEEL, CONTENT = tiny_wheel("slow", "NAME = 'slow'\n")
BUILD = f"""
import time

def build_wheel(folder, *_):
    time.sleep(15)
    with open(folder + "/{WHEEL}", "wb") as wheel:
        wheel.write({CONTENT!r})
    return "{WHEEL}"
"""


def see_the_preparer_give_way(cluster: HostCluster, host_agent: HostAgent, groups: str) -> None:
    """Has the agent prepare the package, and looks at the weight of the one group that `groups` (a glob) then finds."""
    folder = cluster.pipelines / "slow"
    folder.mkdir()
    (folder / "slow-1.0.tar.gz").write_bytes(source_archive("slow", built_source(BUILD)))
    cluster.add_pipeline("slow", "import slow\nprint(slow.NAME)\n", requirements="./slow-1.0.tar.gz\n")
    run = cluster.run("slow")
    # As Docker's runtimes turn shares into a weight: 2 to 262144 into 1 to 10000.
    expected = 1 + (DockerOptions("", folder, folder, "").preparer_cpu_shares - 2) * 9999 // 262142

    def weighed() -> bool:
        # The group is there a moment before its weight.
        return host_agent.run(f"cat {groups}/cpu.weight", check=False).stdout.split() == [str(expected)]

    cluster.until(weighed, f"a preparer with a weight of {expected}", SECONDS)
    shown = cluster.finish(run, SECONDS)
    assert shown["state"] == "RUN_STATE_SUCCEEDED", cluster.log(run)
    assert cluster.log(run).endswith(b"slow\n")
    cluster.until(lambda: not host_agent.run(f"ls -d {groups}", check=False).stdout, "its group to be gone")
