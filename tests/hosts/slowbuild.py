"""A pipeline whose package takes a while to build, and what is seen of its preparer meanwhile."""

import io
import tarfile

from fastflow_agent.runtime.docker_options import DockerOptions

from tests.hosts.lab.cluster import HostAgent, HostCluster

SECONDS = 120.0
"""For a preparation in a guest: a container or two beside the build."""
METADATA = "Metadata-Version: 2.1\nName: slow\nVersion: 1\n"
BACKEND = f"""
import time, zipfile

def build_wheel(folder, *_):
    time.sleep(15)
    name = "slow-1-py3-none-any.whl"
    files = {{
        "slow.py": "",
        "slow-1.dist-info/METADATA": {METADATA!r},
        "slow-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        "slow-1.dist-info/RECORD": "",
    }}
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "slow"
version = "1"
"""


def see_the_preparer_give_way(cluster: HostCluster, host_agent: HostAgent, groups: str) -> None:
    """Has the agent prepare the package, and looks at the weight of the one group that `groups` (a glob) then finds."""
    folder = cluster.pipelines / "slow"
    folder.mkdir()
    with tarfile.open(folder / "slow-1.tar.gz", "w:gz") as package:
        for name, text in {"backend.py": BACKEND, "pyproject.toml": PROJECT, "PKG-INFO": METADATA}.items():
            member = tarfile.TarInfo(f"slow-1/{name}")
            member.size = len(text.encode())
            package.addfile(member, io.BytesIO(text.encode()))
    cluster.add_pipeline("slow", "import slow\nprint('here')\n", requirements="./slow-1.tar.gz\n")
    run = cluster.run("slow")
    # As Docker's runtimes turn shares into a weight: 2 to 262144 into 1 to 10000.
    expected = 1 + (DockerOptions("", folder, folder, "").preparer_cpu_shares - 2) * 9999 // 262142

    def weighed() -> bool:
        # The group is there a moment before its weight.
        return host_agent.run(f"cat {groups}/cpu.weight", check=False).stdout.split() == [str(expected)]

    cluster.until(weighed, SECONDS, f"a preparer with a weight of {expected}")
    shown = cluster.finish(run, SECONDS)
    assert shown["state"] == "RUN_STATE_SUCCEEDED", cluster.log(run)
    assert cluster.log(run).endswith(b"here\n")
    cluster.until(lambda: not host_agent.run(f"ls -d {groups}", check=False).stdout, 30, "its group to be gone")
