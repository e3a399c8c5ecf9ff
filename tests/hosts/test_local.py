"""`ffctl run --local` on a host with cgroup v2: limits and verdict as its agent gives them, with no server."""

import shlex

import pytest

from tests.hosts.lab.cluster import HostAgent
from tests.hosts.lab.scope import Completed

SECONDS = 240.0
"""For one local run in a guest, the first of which prepares an environment: twenty on a quiet machine."""

HOG = "print('begun', flush=True)\nblocks = []\nwhile True: blocks.append(bytearray(8 << 20))\n"
SOFT = "import time\nblock = bytearray(80 << 20)\ntime.sleep(4)\ndel block\ntime.sleep(3)\nprint('unharmed')\n"


def run_local(host: HostAgent, image: str, name: str, main: str, metadata: str) -> Completed:
    """Runs a pipeline on the host beside its agent, as a person who is logged in there would."""
    folder = f"/root/{name}"
    host.run(f"mkdir -p {folder}")
    for file, content in (("main.py", main), ("pipeline.json", metadata)):
        host.run(f"printf %s {shlex.quote(content)} > {folder}/{file}")
    # On the disk that the agent has: the root of a guest belongs to nobody else.
    settings = f"FASTFLOW_IMAGE={shlex.quote(image)} FASTFLOW_NETWORK=none"
    command = f"{settings} /opt/fastflow/bin/ffctl run --local {folder} --cache /var/lib/fastflow/local 2>&1"
    return host.run(command, timeout=SECONDS, check=False)


@pytest.mark.timeout(2 * SECONDS + 60, func_only=True)
def test_a_local_run_has_the_limits_and_the_verdict_that_an_agent_gives(
    host_agent: HostAgent, runner_image: str
) -> None:
    metadata = '{"mem_hard_limit": "256m", "mem_soft_limit": "64m", "cpu_hard_limit": 0.5}'
    soft = run_local(host_agent, runner_image, "soft", SOFT, metadata)
    assert soft.exit_code == 0, soft.stdout
    assert "unharmed\n" in soft.stdout
    assert "warning: memory above its soft limit of 64 MiB" in soft.stdout
    assert "warning over: memory was above" in soft.stdout
    assert "unavailable" not in soft.stdout
    hard = run_local(host_agent, runner_image, "hard", HOG, '{"mem_hard_limit": "96m"}')
    assert hard.exit_code == 1, hard.stdout
    assert "begun\n" in hard.stdout
    assert "local run of hard FAILED (OOM_KILLED, exit code 137)" in hard.stdout
    assert "hard memory limit of 96 MiB" in hard.stdout
    assert "process: python3" in hard.stdout
    assert host_agent.run("docker ps -aq").stdout == "", "no container stays"
    assert host_agent.run("ls -d /sys/fs/cgroup/fastflow/*/ 2>/dev/null", check=False).stdout == "", "nor a group"
