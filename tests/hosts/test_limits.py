"""Limits and telemetry on a host with cgroup v2: the kernel's own files tell what a run used and why it ended."""

import time

from tests.hosts.lab.cluster import HostAgent, HostCluster
from tests.hosts.slowbuild import see_the_preparer_give_way

MIB = 1 << 20
SECONDS = 120.0
"""For one run in a guest: five to fifteen on a quiet machine."""

HOG = "blocks = []\nwhile True: blocks.append(bytearray(8 << 20))"
SLOT = "/sys/fs/cgroup/fastflow/*"
"""The parent group of the one slot that lives; the container's own group lies in it."""


def test_the_agent_says_that_its_host_has_cgroup_v2(cluster: HostCluster, host_agent: HostAgent) -> None:
    agent = cluster.show_agent(host_agent.name)
    assert (agent["cgroup"], agent["runtime"], agent["host_name"]) == ("v2", "docker", host_agent.name)
    assert agent["conditions"] == []


def test_memory_over_the_hard_limit_is_an_oom_kill_told_by_the_slots_own_group(
    cluster: HostCluster, host_agent: HostAgent
) -> None:
    cluster.add_pipeline("hog", f"print('begun', flush=True)\n{HOG}", pipeline={"mem_hard_limit": "96m"})
    shown = cluster.finish(cluster.run("hog"), SECONDS)
    assert (shown["state"], shown["reason"]) == ("RUN_STATE_FAILED", "REASON_OOM_KILLED")
    (attempt,) = shown["attempts"]
    assert (attempt["exit_code"], attempt["signal"], attempt["agent"]) == (137, 9, host_agent.name)
    found = attempt["out_of_memory"]
    assert int(found["limit_bytes"]) == 96 * MIB
    # The kernel charges in batches of 64 pages, which the parent group counts before they are refused.
    assert 0.98 * 96 * MIB <= int(found["peak_bytes"]) <= 97 * MIB
    assert "memory.events" in found["evidence"]
    assert "oom_group_kill 1" in found["evidence"]
    assert found["process"] == "python3", "the kernel's log names whom it chose, though all were killed"
    assert cluster.log(shown["id"]) == b"begun\n"
    explained = cluster.ffctl("runs", "show", shown["id"]).text
    assert "hard memory limit of 96 MiB" in " ".join(explained.split())


def test_an_oom_begun_by_a_child_ends_the_whole_container(cluster: HostCluster, host_agent: HostAgent) -> None:
    main = f"""
        import pathlib, subprocess, sys, time
        print("begun", flush=True)
        while not pathlib.Path("/tmp/go").exists(): time.sleep(0.1)
        subprocess.run([sys.executable, "-c", {HOG!r}])
        print("the child is dead", flush=True)
        time.sleep(60)
    """
    cluster.add_pipeline("family", main, pipeline={"mem_hard_limit": "96m"})
    run = cluster.run("family")
    cluster.wait_for_log(run, b"begun", SECONDS)
    assert host_agent.run(f"cat {SLOT}/*/memory.oom.group").stdout == "1\n", "it is the container's own group's"
    assert host_agent.run(f"cat {SLOT}/*/memory.max").stdout == f"{96 * MIB}\n"
    _let(host_agent, "go")
    shown = cluster.finish(run, SECONDS)
    assert (shown["state"], shown["reason"], shown["exit_code"]) == ("RUN_STATE_FAILED", "REASON_OOM_KILLED", 137)
    assert cluster.log(run) == b"begun\n", "the parent died with the child, before it could say a word"


def test_a_kill_from_inside_is_not_taken_for_an_oom_kill(cluster: HostCluster, host_agent: HostAgent) -> None:
    cluster.add_pipeline("suicide", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    shown = cluster.finish(cluster.run("suicide"), SECONDS)
    assert (shown["reason"], shown["exit_code"]) == ("REASON_SIGNAL", 137)
    assert "out_of_memory" not in shown["attempts"][0]


def test_a_soft_memory_limit_warns_while_it_is_exceeded_and_harms_nothing(
    cluster: HostCluster, host_agent: HostAgent
) -> None:
    main = """
        import pathlib, time
        def wait_for(name):
            while not pathlib.Path("/tmp", name).exists(): time.sleep(0.1)
        block = bytearray(80 << 20)
        wait_for("free")
        del block
        wait_for("end")
        print("unharmed")
    """
    cluster.add_pipeline("wide", main, pipeline={"mem_hard_limit": "256m", "mem_soft_limit": "64m"})
    run = cluster.run("wide")
    raised = cluster.until(lambda: _warnings(cluster, run), "the warning", SECONDS)
    assert [warning.get("clear_time") for warning in raised] == [None]
    since = time.monotonic()
    cluster.until(lambda: time.monotonic() - since > 3, "three seconds above the limit")
    _let(host_agent, "free")
    cluster.until(lambda: "clear_time" in _warnings(cluster, run)[0], "the end of the warning")
    assert cluster.show(run)["state"] == "RUN_STATE_RUNNING", "it was cleared by use, not by the run's end"
    _let(host_agent, "end")
    shown = cluster.finish(run, SECONDS)
    assert (shown["state"], cluster.log(run)) == ("RUN_STATE_SUCCEEDED", b"unharmed\n")
    (warning,) = shown["attempts"][0]["warnings"]
    assert (warning["kind"], int(warning["limit"])) == ("SOFT_LIMIT_KIND_MEMORY", 64 * MIB)
    assert 80 * MIB < int(warning["peak"]) < 120 * MIB
    assert 3 < warning["seconds_above"] < 30
    assert warning["raise_time"] < warning["clear_time"]


def test_telemetry_agrees_with_the_kernels_files(cluster: HostCluster, host_agent: HostAgent) -> None:
    main = """
        import pathlib, threading, time
        block = bytearray(48 << 20)
        pause = threading.Event()
        for _ in range(5): threading.Thread(target=pause.wait).start()
        end = time.process_time() + 2
        while time.process_time() < end: pass
        print("worked", flush=True)
        while not pathlib.Path("/tmp/end").exists(): time.sleep(0.2)
        pause.set()
    """
    cluster.add_pipeline("busy", main, pipeline={"cpu_hard_limit": 0.3, "mem_hard_limit": "256m"})
    run = cluster.run("busy")
    cluster.wait_for_log(run, b"worked", SECONDS)
    assert host_agent.run(f"cat {SLOT}/*/cpu.max").stdout.split() == ["30000", "100000"]
    assert host_agent.run(f"ls {SLOT}/*/memory.pressure", check=False).exit_code != 0, "a guest has no pressure files"
    cluster.until(lambda: int(_usage(cluster, run).get("pids", 0)) >= 7, "a sample of the five threads")

    def agreeing() -> tuple[dict[str, int], dict[str, str]] | None:
        # Sample and look are moments apart, in which uv may begin or end a thread of its own.
        kernel, sample = _kernel_figures(host_agent), _usage(cluster, run)
        return (kernel, sample) if int(sample["pids"]) == kernel["pids"] else None

    kernel, alive = cluster.until(agreeing, "a sample with as many processes as the kernel counts")
    assert abs(int(alive["working_set_bytes"]) - kernel["working_set"]) < 4 * MIB
    assert 48 * MIB < int(alive["working_set_bytes"]) < 96 * MIB
    _let(host_agent, "end")
    usage = cluster.finish(run, SECONDS)["attempts"][0]["usage"]
    assert kernel["cpu_usec"] <= int(usage["cpu_usec"]) < kernel["cpu_usec"] + 3e6
    assert int(usage["cpu_usec"]) > 2e6
    assert kernel["throttled_usec"] <= int(usage["throttled_usec"])
    assert int(usage["throttled_usec"]) > 2e6, "two seconds of work at 0.3 cores wait more than four"
    assert kernel["peak"] <= int(usage["peak_memory_bytes"]) < 256 * MIB
    assert int(usage["working_set_bytes"]) > 48 * MIB, "of the last sample alive"
    assert int(usage["pids"]) >= 2
    assert [name for name in usage if "pressure" in name] == [], "unavailable is not zero"


def test_a_run_too_short_for_a_sample_has_totals_and_no_made_up_moments(
    cluster: HostCluster, host_agent: HostAgent
) -> None:
    cluster.add_pipeline("short", "print('short')")
    usage = cluster.finish(cluster.run("short"), SECONDS)["attempts"][0]["usage"]
    assert int(usage["cpu_usec"]) > 0
    assert int(usage["peak_memory_bytes"]) > MIB
    # A container whose program is over was seen with 120 to 700 KB, and with no process or its init alone.
    assert int(usage.get("pids", 2)) >= 2
    assert int(usage.get("working_set_bytes", MIB)) >= MIB


def test_a_preparer_lies_beside_the_slots_and_gives_way_to_them(cluster: HostCluster, host_agent: HostAgent) -> None:
    of_a_container = "[0-9a-f]" * 17 + "*"
    see_the_preparer_give_way(cluster, host_agent, f"/sys/fs/cgroup/fastflow/{of_a_container}")


def test_after_a_run_its_host_has_nothing_of_it(cluster: HostCluster, host_agent: HostAgent) -> None:
    cluster.until(lambda: not cluster.show_agent(host_agent.name)["attempts"], "the last run to be forgotten")
    left = "ls -d /sys/fs/cgroup/fastflow/*/ /var/lib/fastflow/agent/slots/* /run/fastflow/env/* 2>/dev/null"
    cluster.until(lambda: not host_agent.run(left, check=False).stdout, "slots and control groups to be removed")
    assert host_agent.run("docker ps --all --quiet && docker volume ls --quiet").stdout == ""
    assert cluster.show_agent(host_agent.name)["reserved"]["memory_bytes"] == "0"


def _let(host_agent: HostAgent, name: str) -> None:
    """Make a file in the /tmp of the one living slot, for which its program waits."""
    host_agent.run(f"cd /var/lib/fastflow/agent/slots/*/tmp && touch {name}")


def _warnings(cluster: HostCluster, run: str) -> list[dict[str, str]]:
    return [warning for attempt in cluster.show(run).get("attempts", []) for warning in attempt["warnings"]]


def _usage(cluster: HostCluster, run: str) -> dict[str, str]:
    return dict(cluster.show(run)["attempts"][0].get("usage", {}))


def _kernel_figures(host_agent: HostAgent) -> dict[str, int]:
    """What the control groups of the one living slot say, read by the test itself."""
    files = ("memory.peak", "memory.current", "pids.current")
    peak, current, pids = host_agent.run("cat " + " ".join(f"{SLOT}/{name}" for name in files)).stdout.split()
    flat = host_agent.run(f"cat {SLOT}/memory.stat {SLOT}/*/cpu.stat").stdout.splitlines()
    stat = {name: int(value) for name, value in (line.split() for line in flat)}
    return {
        "peak": int(peak),
        "pids": int(pids),
        "working_set": int(current) - stat["inactive_file"],
        "cpu_usec": stat["usage_usec"],
        "throttled_usec": stat["throttled_usec"],
    }
