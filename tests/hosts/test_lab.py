"""The lab itself is what its tests rely on: guests like real hosts, faults like real faults, and no leftovers."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hosts.lab import guest as guest_module
from tests.hosts.lab.errors import LabError
from tests.hosts.lab.guest import Guest
from tests.hosts.lab.init import PLAIN
from tests.hosts.lab.lab import Lab
from tests.hosts.lab.network import CONTROL_PLANE_ADDRESS
from tests.hosts.lab.scope import ScopedProcess

MIB = 1024 * 1024
PORT = 7999
GUEST_PYTHON = "/opt/fastflow/bin/python"

ECHO_SERVER = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc

def serve(handler_call_details):
    return grpc.unary_unary_rpc_method_handler(lambda request, context: request[::-1])

class Handler(grpc.GenericRpcHandler):
    service = staticmethod(serve)

server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
server.add_insecure_port(sys.argv[1])
server.start()
print("ready", flush=True)
server.wait_for_termination()
"""

ECHO_CLIENT = """
import sys
import grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    sys.stdout.buffer.write(channel.unary_unary("/echo/Reverse")(b"guest", timeout=float(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    """A guest with its Docker engine up, no agent in it; one for all tests of this module."""
    guest = lab.add_guest("plain")
    guest.boot()
    guest.wait_for_docker()
    yield guest
    guest.power_cut()


@pytest.fixture
def grpc_server(lab: Lab, tmp_path: Path) -> Iterator[str]:
    """Address of a gRPC server in the lab's network that answers every call with the reversed request."""
    address = f"{CONTROL_PLANE_ADDRESS}:{PORT}"
    log = tmp_path / "server.log"
    server: ScopedProcess = lab.scope.start([sys.executable, "-c", ECHO_SERVER, address], log=log)
    wait_until(lambda: "ready" in log.read_text(), "the gRPC server")
    yield address
    server.kill()


def test_a_guest_has_cgroup_v2_with_real_controllers(guest: Guest) -> None:
    assert guest.run("stat --format %T --file-system /sys/fs/cgroup").stdout.strip() == "cgroup2fs"
    controllers = guest.run("cat /sys/fs/cgroup/cgroup.controllers").stdout.split()
    assert {"cpu", "io", "memory", "pids"} <= set(controllers)


def test_a_guest_is_a_host_of_its_own(guest: Guest) -> None:
    assert guest.run("hostname").stdout.strip() == guest.name
    assert guest.run("cat /etc/machine-id").stdout != Path("/etc/machine-id").read_text()
    assert guest.run("cat /proc/sys/kernel/random/boot_id").stdout != read_boot_id()


def test_the_runner_image_runs_in_a_guest_without_network(guest: Guest, runner_image: str) -> None:
    done = guest.run(["docker", "run", "--rm", "--network", "none", runner_image, "python3", "-c", "print(6 * 7)"])
    assert done.stdout == "42\n"


def test_memory_over_the_limit_is_an_oom_kill_that_the_parent_cgroup_still_tells_of(
    guest: Guest, runner_image: str
) -> None:
    parent = "/sys/fs/cgroup/fastflow/lab-test"
    guest.run(
        "echo '+memory +cpu' >/sys/fs/cgroup/cgroup.subtree_control && mkdir -p /sys/fs/cgroup/fastflow && "
        f"echo '+memory +cpu' >/sys/fs/cgroup/fastflow/cgroup.subtree_control && mkdir {parent}"
    )
    limits = ["--memory", "64m", "--memory-swap", "64m", "--cgroup-parent", "/fastflow/lab-test"]
    hog = ["python3", "-c", "hog = bytearray(200 << 20)"]
    done = guest.run(["docker", "run", "--rm", "--network", "none", *limits, runner_image, *hog], check=False)
    assert done.exit_code == 137
    assert guest.run(f"ls -d {parent}/*/", check=False).exit_code != 0, "the container's own cgroup is gone"
    events = dict(line.split() for line in guest.run(f"cat {parent}/memory.events").stdout.splitlines())
    assert int(events["oom_kill"]) == 1
    peak = int(guest.run(f"cat {parent}/memory.peak").stdout)
    assert 60 * MIB < peak <= 66 * MIB


def test_a_guest_reaches_a_grpc_server_beside_the_control_plane(guest: Guest, grpc_server: str) -> None:
    assert guest.run([GUEST_PYTHON, "-c", ECHO_CLIENT, grpc_server, "20"]).stdout == "tseug"


def test_the_agent_is_installed_in_a_guest(guest: Guest) -> None:
    assert guest.run([GUEST_PYTHON, "-c", "import fastflow_agent, docker, google_crc32c; print('ok')"]).stdout == "ok\n"
    assert "fastflow-agent" in guest.run(["ls", "/opt/fastflow/bin"]).stdout


def test_a_partition_stops_every_packet_until_it_heals_and_the_lab_still_reaches_in(
    guest: Guest, grpc_server: str
) -> None:
    guest.partition()
    try:
        cut = guest.run([GUEST_PYTHON, "-c", ECHO_CLIENT, grpc_server, "3"], check=False)
    finally:
        guest.heal()
    assert cut.exit_code != 0
    assert "StatusCode.UNAVAILABLE" in cut.stderr or "StatusCode.DEADLINE_EXCEEDED" in cut.stderr
    assert guest.run([GUEST_PYTHON, "-c", ECHO_CLIENT, grpc_server, "20"]).stdout == "tseug"


def test_a_power_cut_keeps_the_disks_and_nothing_else(guest: Guest) -> None:
    guest.run("echo kept >/var/lib/fastflow/kept && echo kept >/var/lib/docker/kept && sync && echo lost >/run/lost")
    before = guest.run("cat /proc/sys/kernel/random/boot_id").stdout
    machine = guest.run("cat /etc/machine-id").stdout
    guest.power_cut()
    assert not guest.is_on()
    guest.boot()
    assert guest.run("cat /var/lib/fastflow/kept /var/lib/docker/kept").stdout == "kept\nkept\n"
    assert guest.run("ls /run/lost", check=False).exit_code != 0
    assert guest.run("cat /proc/sys/kernel/random/boot_id").stdout != before
    assert guest.run("cat /etc/machine-id").stdout == machine


def test_an_orderly_power_off_writes_what_was_not_yet_on_disk(guest: Guest) -> None:
    guest.run("echo unsynced >/var/lib/fastflow/unsynced")
    guest.power_off()
    assert not guest.is_on()
    guest.boot()
    assert guest.run("cat /var/lib/fastflow/unsynced").stdout == "unsynced\n"
    assert "recovery complete" not in guest.run("dmesg").stdout, "the file systems were unmounted"


def test_the_clock_of_a_guest_can_be_set_wrong(guest: Guest) -> None:
    guest.run("date --set '1 hour ago'")
    assert 3500 < time.time() - float(guest.run("date +%s").stdout) < 3700
    guest.run("date --set '1 hour'")


def test_a_command_that_does_not_end_is_killed_and_reported(guest: Guest) -> None:
    with pytest.raises(LabError, match="not done after 1 s: echo begun; sleep 1000"):
        guest.run("echo begun; sleep 1000", timeout=1)
    assert guest.run(["pgrep", "--full", "sleep 1000"], check=False).stdout == ""


def test_an_error_shows_the_console_of_the_guest(guest: Guest) -> None:
    guest.power_cut()
    with pytest.raises(LabError, match=r"is off; its console:\n(.*\n)*.*mounted filesystem"):
        guest.run("true")
    guest.boot()


def test_a_guest_that_stands_still_in_its_first_boot_is_powered_on_once_more_and_in_no_later_one(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, patience, power_on = lab.add_guest("still"), guest_module.BOOT_TIMEOUT, Guest.power_on
    guest.write("/lab/still", "#!/bin/sh\nexec sleep 600\n")
    guest._outside("/lab/still").chmod(0o755)

    def stand_still() -> None:
        guest._init = replace(PLAIN, kernel_words=("init=/lab/still",))
        guest.power_on()
        monkeypatch.setattr(guest_module, "BOOT_TIMEOUT", 0.0)

    def power_on_to_boot(guest: Guest) -> None:
        guest._init = PLAIN
        monkeypatch.setattr(guest_module, "BOOT_TIMEOUT", patience)
        power_on(guest)

    stand_still()
    monkeypatch.setattr(Guest, "power_on", power_on_to_boot)
    guest.wait_until_up()
    assert "was not up within 0 s" in guest.false_start
    guest.power_cut()
    monkeypatch.undo()
    stand_still()
    with pytest.raises(LabError, match="was not up within 0 s"):
        guest.wait_until_up()
    guest.power_cut()
    guest.false_start = ""


def test_a_killed_lab_leaves_no_process_network_or_mount(lab: Lab, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED_LAB, str(tmp_path)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        started: list[int] = json.loads(owner.stdout.readline())
        assert all(Path(f"/proc/{pid}/root").exists() for pid in started)
        owner.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), f"the end of {started}")
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert str(tmp_path) not in subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True).stdout


KILLED_LAB = """
import json, signal, subprocess, sys
from pathlib import Path
from tests.hosts.lab.network import Network
from tests.hosts.lab.scope import Scope

folder = Path(sys.argv[1])
scope = Scope(own_network=True)
Network(scope).add_host()
(folder / "disk").mkdir()
scope.run(["sh", "-c", f"mkfs.ext4 -q {folder}/image 16M && mount -o loop {folder}/image {folder}/disk"], timeout=20)
inside = scope.start(["sh", "-c", "sleep 1000 & sleep 1000"], log=folder / "log")
beside = subprocess.Popen([*scope.network_entrance(), "sleep", "1000"])
print(json.dumps([inside.pid, beside.pid]), flush=True)
signal.pause()
"""


def read_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s in vain for {what}"
        time.sleep(0.05)
