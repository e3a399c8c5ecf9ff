"""What a pipeline is and may do in its container: one test for each sentence of the contract."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastflow_agent.model import Limits
from fastflow_agent.runtime.docker import DockerRuntime
from fastflow_agent.runtime.docker_options import DockerOptions

from tests.slots import Workshop

REPORT = """
    import json, os, subprocess

    def attempt(action):
        try:
            action()
            return "done"
        except OSError as error:
            return error.strerror

    status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
    print(json.dumps({
        "ids": [os.getuid(), os.getgid(), os.getgroups()],
        "home": os.environ["HOME"],
        "account": __import__("pwd").getpwuid(os.getuid()).pw_name,
        "capabilities": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
        "no_new_privileges": status["NoNewPrivs"],
        "working_directory": os.getcwd(),
        "write_to_root": {path: attempt(lambda: open(path, "w")) for path in ("/x", "/etc/x", "/var/x")},
        "init": open("/proc/1/comm").read().strip(),
        "core_limit": __import__("resource").getrlimit(__import__("resource").RLIMIT_CORE),
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "chown": attempt(lambda: os.chown("/tmp", 0, 0)),
        "oom_score": int(open("/proc/self/oom_score_adj").read()),
    }))
"""


@pytest.fixture(scope="module")
def report(docker_options: Callable[..., DockerOptions], empty_cache: Path) -> Any:
    """What a pipeline says of itself: one container for all who ask."""
    options = docker_options()

    async def ask() -> str:
        runtime = DockerRuntime(options)
        workshop = Workshop(runtime, options.data_dir, options.env_dir, empty_cache)
        try:
            return (await workshop.slot(REPORT).run()).text
        finally:
            await workshop.clear()
            await runtime.aclose()

    return json.loads(asyncio.run(ask()))


def test_it_is_not_root_and_has_an_account(report: Any) -> None:
    assert report["ids"] == [1000, 1000, [1000]]
    assert report["account"] == "fastflow"


def test_home_is_tmp(report: Any) -> None:
    assert report["home"] == "/tmp"


def test_it_has_no_capability_and_can_gain_none(report: Any) -> None:
    assert set(report["capabilities"]) == {"0000000000000000"}
    assert report["no_new_privileges"] == "1"
    assert report["chown"] == "Operation not permitted"


def test_the_root_file_system_is_read_only(report: Any) -> None:
    assert set(report["write_to_root"].values()) == {"Read-only file system"}


def test_it_works_in_the_folder_of_its_code(report: Any) -> None:
    assert report["working_directory"] == "/fastflow/code"


def test_dockers_init_is_process_1(report: Any) -> None:
    assert report["init"] in ("docker-init", "tini")


def test_it_leaves_no_core_file_and_goes_before_the_agent_when_the_host_lacks_memory(report: Any) -> None:
    assert report["core_limit"] == [0, 0]
    assert report["oom_score"] > 0


def test_it_gets_the_network_it_was_given_and_no_other(report: Any) -> None:
    assert report["interfaces"] == ["lo"]


async def test_sigterm_reaches_python_at_once(workshop: Workshop) -> None:
    slot = workshop.slot("""
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        print("ready", flush=True)
        time.sleep(600)
    """)
    await slot.begin()
    await slot.said("ready")
    assert await slot.runtime.signal(slot.id, signal.SIGTERM)
    # It is not waited for as long as it sleeps.
    assert (await slot.end()).exit_code == 3


async def test_orphans_are_reaped(workshop: Workshop) -> None:
    ended = await workshop.slot("""
        import os, time
        reading, writing = os.pipe()
        if os.fork() == 0:
            if (orphan := os.fork()) != 0:
                os.write(writing, str(orphan).encode())
            os._exit(0)
        os.wait()
        orphan = os.read(reading, 100).decode()
        # A zombie whom nobody reaps stays for good.
        end = time.monotonic() + 30
        while os.path.exists(f"/proc/{orphan}") and time.monotonic() < end:
            time.sleep(0.01)
        print(os.path.exists(f"/proc/{orphan}"))
    """).run()
    assert ended.text == "False"


async def test_it_can_not_start_processes_without_end(docker_options: Any, empty_cache: Path) -> None:
    limit = 300
    # Room for uv, which has some threads for each core of the host.
    options = docker_options(pids_limit=limit)
    runtime = DockerRuntime(options)
    workshop = Workshop(runtime, options.data_dir, options.env_dir, empty_cache)
    try:
        ended = await workshop.slot(
            """
            import os, time
            for count in range(1000):
                try:
                    if os.fork() == 0:
                        time.sleep(30)
                        os._exit(0)
                except OSError as error:
                    print(count, error.strerror)
                    break
        """,
            limits=Limits(2000, 512 << 20),
        ).run()
    finally:
        await workshop.clear()
        await runtime.aclose()
    count, _, why = ended.text.partition(" ")
    assert (0 < int(count) < limit, why) == (True, "Resource temporarily unavailable")
