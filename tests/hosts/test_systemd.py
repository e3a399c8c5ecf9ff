"""A host like most real ones: systemd, Docker with its systemd cgroup driver, and the agent as the delivered unit."""

import re
from collections.abc import Iterator

import pytest

from tests.cluster.programs import TICKER, TIDY, TIDY_LOG, ticker_log
from tests.cluster.scenarios import terminal_facts
from tests.hosts.lab.cluster import HostAgent, HostCluster
from tests.hosts.lab.init import SYSTEMD
from tests.hosts.lab.lab import Lab
from tests.hosts.slowbuild import see_the_preparer_give_way

MIB = 1 << 20
HOG = """
    import pathlib, time
    print("begun", flush=True)
    while not pathlib.Path("/tmp/go").exists(): time.sleep(0.1)
    blocks = []
    while True: blocks.append(bytearray(8 << 20))
"""
FILLER = """
    written = 0
    try:
        with open("/fastflow/env/filler", "wb", buffering=0) as file:
            while written < 200 << 20: written += file.write(bytes(1 << 20))
    except OSError:
        pass
    print(written)
"""
SHARED = {"cpu_hard_limit": 0.4, "mem_hard_limit": "128m"}
"""So that two runs fit on the host."""
ENVIRONMENTS = "findmnt --noheadings --output TARGET,FSTYPE,OPTIONS,ID /run/fastflow/env"
SECONDS = 120.0
"""For one run in a guest: five to fifteen on a quiet machine."""


@pytest.fixture(scope="module")
def cluster(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    """A control plane for this host alone, so that no run is placed on another."""
    # Nothing is LOST meanwhile: this host takes most of a minute to be back after a reboot.
    with HostCluster(lab, tmp_path_factory.mktemp("systemd"), FASTFLOW_LOST_AFTER="300") as cluster:
        cluster.controlplane.start()
        yield cluster


@pytest.fixture(scope="module")
def host_agent(cluster: HostCluster) -> Iterator[HostAgent]:
    """The host, with its agent active."""
    host = cluster.add_host("worker-systemd", SYSTEMD)
    host.boot()
    yield host
    host.power_cut()


def test_an_oom_kill_is_told_by_the_slots_slice(cluster: HostCluster, host_agent: HostAgent) -> None:
    cluster.add_pipeline("hog", HOG, pipeline={"mem_hard_limit": "96m"})
    run = cluster.run("hog")
    cluster.wait_for_log(run, b"begun", SECONDS)
    group = "/sys/fs/cgroup/fastflow.slice/fastflow-*.slice/docker-*.scope"
    assert host_agent.run(f"cat {group}/memory.max {group}/memory.oom.group").stdout.split() == [str(96 * MIB), "1"]
    host_agent.run("cd /var/lib/fastflow-agent/agent/slots/*/tmp && touch go")
    shown = cluster.finish(run, SECONDS)
    assert (shown["reason"], shown["exit_code"]) == ("REASON_OOM_KILLED", 137)
    found = shown["attempts"][0]["out_of_memory"]
    assert "oom_group_kill 1" in found["evidence"]
    assert 0.98 * 96 * MIB <= int(found["peak_bytes"]) <= 97 * MIB
    assert found["process"] == "python3", "the unit lets the agent read the kernel's log"
    usage = shown["attempts"][0]["usage"]
    assert int(usage["cpu_usec"]) > 0
    assert int(usage["pids"]) >= 1


def test_a_restart_of_the_unit_harms_no_run_and_nothing_of_it_stays(
    cluster: HostCluster, host_agent: HostAgent
) -> None:
    cluster.add_pipeline("ticker", TICKER)
    run = cluster.run("ticker", "--env", "TICKS=300")
    cluster.wait_for_log(run, b"tick 5 ", SECONDS)
    environments = host_agent.run(ENVIRONMENTS).stdout
    for _ in range(2):
        host_agent.run("systemctl restart fastflow-agent")
    assert host_agent.run(ENVIRONMENTS).stdout == environments, "the same file system as before"
    shown = cluster.finish(run, SECONDS)
    assert (shown["state"], shown["exit_code"], shown["attempt"]) == ("RUN_STATE_FAILED", 7, 1)
    assert cluster.log(run) == ticker_log(300)
    left = "systemctl list-units --no-legend --plain 'fastflow-*.slice'; docker ps --all --quiet"
    cluster.until(lambda: not host_agent.run(left).stdout, "slices and containers to be removed")


def test_a_run_that_fills_the_folder_of_its_environment_takes_nothing_of_the_hosts_run(
    cluster: HostCluster, host_agent: HostAgent
) -> None:
    free = "stat --file-system --format '%f %S' /run"
    before, block = map(int, host_agent.run(free).stdout.split())
    cluster.add_pipeline("filler", FILLER, pipeline={"mem_hard_limit": "512m"})
    shown = cluster.finish(run := cluster.run("filler"), SECONDS)
    assert shown["state"] == "RUN_STATE_SUCCEEDED", cluster.log(run)
    assert int(cluster.log(run)) <= 64 * MIB
    assert (before - int(host_agent.run(free).stdout.split()[0])) * block < 4 * MIB
    cluster.add_pipeline("next", "print('begun')")
    assert cluster.finish(cluster.run("next"), SECONDS)["state"] == "RUN_STATE_SUCCEEDED", (
        "what was filled is free again"
    )


def test_a_preparer_lies_beside_the_slots_and_gives_way_to_them(cluster: HostCluster, host_agent: HostAgent) -> None:
    see_the_preparer_give_way(cluster, host_agent, "/sys/fs/cgroup/fastflow.slice/docker-*.scope")


def test_an_orderly_reboot_stops_the_agent_before_its_containers_and_ends_the_run_with_host_reboot(
    cluster: HostCluster, host_agent: HostAgent
) -> None:
    cluster.add_pipeline("ticker", TICKER, pipeline=SHARED)
    cluster.add_pipeline("tidy", TIDY, pipeline=SHARED)
    run, tidy = cluster.run("ticker", "--env", "TICKS=20000"), cluster.run("tidy")
    cluster.wait_for_log(run, b"tick 5 ", SECONDS)
    cluster.wait_for_log(tidy, b"begun", SECONDS)
    before = len(host_agent.guest.console())
    host_agent.power_off()
    told = re.sub(r"\x1b\[[0-9;]*m", "", host_agent.guest.console()[before:])
    until_agent_stopped, _, _ = told.partition("Stopped fastflow-agent")
    assert "Stopping fastflow-agent" in until_agent_stopped
    assert not re.findall(r"docker-[0-9a-f]{8}|Removed slice fastflow", until_agent_stopped)
    host_agent.boot()
    shown = cluster.finish(run, SECONDS)
    assert (shown["state"], shown["reason"], shown["attempt"]) == ("RUN_STATE_FAILED", "REASON_HOST_REBOOT", 1)
    assert ticker_log(20000).startswith(cluster.log(run))
    assert shown["attempts"][0]["log_losses"] == []
    assert terminal_facts(cluster, shown["id"]) == 1
    # It exits 0 as if its work were done.
    shown = cluster.finish(tidy, SECONDS)
    assert (shown["state"], shown["reason"], shown["attempt"]) == ("RUN_STATE_FAILED", "REASON_HOST_REBOOT", 1)
    assert (shown["exit_code"], cluster.log(tidy)) == (0, TIDY_LOG)
    assert shown["attempts"][0]["log_losses"] == []
    left = "docker ps --all --quiet; ls -d /sys/fs/cgroup/fastflow.slice/fastflow-* 2>&-"
    cluster.until(lambda: not host_agent.run(left, check=False).stdout, "slices and containers to be removed")


def test_what_is_confirmed_by_hand_while_a_run_goes_on_tells_nothing_of_its_log_after_a_power_cut(
    cluster: HostCluster, host_agent: HostAgent
) -> None:
    cluster.add_pipeline("ticker", TICKER)
    run = cluster.run("ticker", "--env", "TICKS=20000")
    cluster.wait_for_log(run, b"tick 5 ", SECONDS)
    host_agent.run("systemctl stop fastflow-agent fastflow-confirm-logs")
    folder = "/var/lib/fastflow-agent/agent"
    assert '"lengths": {}' in host_agent.run(f"cat {folder}/confirmed-logs.json").stdout
    host_agent.power_cut()
    host_agent.boot()
    shown = cluster.finish(run, SECONDS)
    assert (shown["state"], shown["reason"]) == ("RUN_STATE_FAILED", "REASON_HOST_REBOOT")
    log = cluster.log(run)
    assert ticker_log(20000).startswith(log)
    (loss,) = shown["attempts"][0]["log_losses"]
    assert (loss["kind"], int(loss["offset"]), "bytes" in loss) == ("LOG_LOSS_KIND_DISK", len(log), False)


def test_the_limit_and_the_verdict_hold_with_crun_which_lays_a_group_of_its_own_below_dockers(
    cluster: HostCluster, host_agent: HostAgent
) -> None:
    crun = '"default-runtime": "crun", "runtimes": {"crun": {"path": "/usr/bin/crun"}},'
    host_agent.run(f"sed -i '1a {crun}' /etc/docker/daemon.json && systemctl restart docker", timeout=SECONDS)
    cluster.add_pipeline("hog", HOG, pipeline={"mem_hard_limit": "96m"})
    run = cluster.run("hog")
    cluster.wait_for_log(run, b"begun", SECONDS)
    group = "/sys/fs/cgroup/fastflow.slice/fastflow-*.slice/docker-*.scope/container"
    assert host_agent.run(f"cat {group}/memory.max {group}/memory.oom.group").stdout.split() == [str(96 * MIB), "1"]
    host_agent.run("cd /var/lib/fastflow-agent/agent/slots/*/tmp && touch go")
    shown = cluster.finish(run, SECONDS)
    assert (shown["reason"], shown["exit_code"]) == ("REASON_OOM_KILLED", 137)
    assert "oom_group_kill 1" in shown["attempts"][0]["out_of_memory"]["evidence"]
