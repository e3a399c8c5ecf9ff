"""The main job on a worker host across a network, and what becomes of a run when agent, link or power fails."""

from fastflow.service.failpoints import AgentPoint, mark

from tests.cluster.programs import TICKER, ticker_log
from tests.cluster.scenarios import terminal_facts
from tests.hosts.lab.cluster import HostAgent, HostCluster

SECONDS = 120.0
"""For one run in a guest: five to fifteen on a quiet machine."""

SPOOL = "/var/lib/fastflow/agent/slots/*/log"
"""The output of the one slot that lives, on its host's disk."""

INTRUDER = """
set -a; . /lab/agent.env; set +a
export FASTFLOW_TOKEN=guessed FASTFLOW_AGENT_NAME=intruder FASTFLOW_DATA_DIR=/var/lib/fastflow/intruder
timeout 40 /opt/fastflow/bin/fastflow-agent run >/tmp/intruder.log 2>&1 &
for _ in $(seq 150); do grep -q token /tmp/intruder.log && break; sleep 0.2; done
kill $!; wait $!
cat /tmp/intruder.log
"""
"""A second agent beside the host's own, which does not know the token."""


def test_output_arrives_over_the_network_byte_for_byte(cluster: HostCluster, host_agent: HostAgent) -> None:
    output = bytes(range(256)) * 2000 + b"\xff\xfe no newline at the end"
    cluster.add_pipeline(
        "binary",
        "import sys; sys.stdout.buffer.write(bytes(range(256)) * 2000)\n"
        r"sys.stdout.buffer.write(b'\xff\xfe no newline at the end')",
    )
    done = cluster.ffctl("run", "binary", "--follow", timeout=SECONDS)
    assert done.stdout == output
    assert done.exit_code == 0


def test_a_secret_is_masked_and_on_the_host_it_stands_only_where_the_program_wrote_it(
    cluster: HostCluster, host_agent: HostAgent
) -> None:
    value = "correct-horse-battery"
    main = "import os, time; print('key:', os.environ['KEY'], flush=True); time.sleep(5)"
    cluster.add_pipeline("leaky", main)
    assert cluster.ffctl("secrets", "set", "KEY", "--pipeline", "leaky", value=value).exit_code == 0
    run = cluster.run("leaky")
    cluster.wait_for_log(run, b"key:", SECONDS)
    holding = host_agent.run(f"grep -rl {value} /var/lib/fastflow /run /lab", check=False).stdout.split()
    assert [path.rpartition("/")[2] for path in holding] in ([], ["log"]), holding
    assert value not in host_agent.run("docker inspect $(docker ps --quiet)").stdout
    assert cluster.finish(run, SECONDS)["state"] == "RUN_STATE_SUCCEEDED"
    assert cluster.log(run) == b"key: " + b"*" * len(value) + b"\n"


def test_who_lacks_the_token_is_refused_agent_and_client_alike(cluster: HostCluster, host_agent: HostAgent) -> None:
    assert "token is not the one of this control plane" in host_agent.run(INTRUDER).stdout
    assert cluster.ffctl("agents", "show", "intruder").exit_code == 4
    token, cluster.token = cluster.token, "guessed"
    try:
        refused = cluster.ffctl("agents", "list")
    finally:
        cluster.token = token
    assert (refused.exit_code, refused.stdout) == (4, b"")
    assert "token" in refused.stderr


def test_an_agent_killed_in_the_middle_of_a_run_takes_it_up_again(cluster: HostCluster, host_agent: HostAgent) -> None:
    cluster.add_pipeline("ticker", TICKER)
    run = cluster.run("ticker", "--env", "TICKS=150")
    cluster.wait_for_log(run, b"tick 5 ", SECONDS)
    host_agent.kill_agent()
    host_agent.start_agent()
    shown = cluster.finish(run, SECONDS)
    assert (shown["state"], shown["exit_code"], shown["attempt"]) == ("RUN_STATE_FAILED", 7, 1)
    assert cluster.log(run) == ticker_log(150)
    assert terminal_facts(cluster, shown["id"]) == 1


def test_a_run_that_ends_while_its_agent_is_dead_keeps_its_verdict(cluster: HostCluster, host_agent: HostAgent) -> None:
    main = """
        print("begun", flush=True)
        import time
        time.sleep(4)
        blocks = []
        while True: blocks.append(bytearray(8 << 20))
    """
    cluster.add_pipeline("late-hog", main, pipeline={"mem_hard_limit": "96m"})
    run = cluster.run("late-hog")
    cluster.wait_for_log(run, b"begun", SECONDS)
    host_agent.kill_agent()
    host_agent.run('while [ -n "$(docker ps --quiet)" ]; do sleep 0.5; done', timeout=60)
    host_agent.start_agent()
    shown = cluster.finish(run, SECONDS)
    assert (shown["reason"], shown["exit_code"]) == ("REASON_OOM_KILLED", 137)
    assert "oom_group_kill 1" in shown["attempts"][0]["out_of_memory"]["evidence"]
    assert cluster.log(run) == b"begun\n"


def test_a_partition_stops_no_run_and_costs_no_byte(cluster: HostCluster, host_agent: HostAgent) -> None:
    cluster.add_pipeline("ticker", TICKER)
    run = cluster.run("ticker", "--env", "TICKS=1000")
    cluster.wait_for_log(run, b"tick 5 ", SECONDS)
    host_agent.partition()
    cluster.wait_for_agent(host_agent.name, "OFFLINE")
    before, stored = _spooled(host_agent), len(cluster.log(run))
    cluster.until(lambda: _spooled(host_agent) > before, "the run to go on")
    assert cluster.show(run)["state"] == "RUN_STATE_RUNNING"
    assert len(cluster.log(run)) == stored < before
    host_agent.heal()
    shown = cluster.finish(run, SECONDS)
    assert (shown["state"], shown["exit_code"], shown["attempt"]) == ("RUN_STATE_FAILED", 7, 1)
    assert cluster.log(run) == ticker_log(1000)
    assert terminal_facts(cluster, shown["id"]) == 1
    assert shown["attempts"][0]["log_losses"] == []


def test_a_power_cut_ends_the_run_with_host_reboot_and_what_was_stored_stays(
    cluster: HostCluster, host_agent: HostAgent
) -> None:
    cluster.add_pipeline("ticker", TICKER)
    run = cluster.run("ticker", "--env", "TICKS=20000")
    cluster.wait_for_log(run, b"tick 60 ", SECONDS)
    stored = cluster.log(run)
    host_agent.power_cut()
    host_agent.boot()
    shown = cluster.finish(run, SECONDS)
    assert (shown["state"], shown["reason"]) == ("RUN_STATE_FAILED", "REASON_HOST_REBOOT")
    assert shown["attempt"] == 1
    log = cluster.log(run)
    assert log.startswith(stored)
    assert ticker_log(20000).startswith(log)
    (loss,) = shown["attempts"][0]["log_losses"]
    assert (loss["kind"], int(loss["offset"])) == ("LOG_LOSS_KIND_DISK", len(log))
    assert "bytes" not in loss
    assert terminal_facts(cluster, shown["id"]) == 1
    cluster.add_pipeline("after", "print('the host works again')")
    again = cluster.run("after")
    assert cluster.finish(again, SECONDS)["state"] == "RUN_STATE_SUCCEEDED"
    assert cluster.log(again) == b"the host works again\n"


def test_a_host_that_lost_its_power_before_a_release_starts_the_run(
    cluster: HostCluster, host_agent: HostAgent
) -> None:
    cluster.add_pipeline("late", "print('begun')")
    host_agent.arm(AgentPoint.CONTAINER_STARTED)
    run = cluster.run("late")
    stopped = mark(AgentPoint.CONTAINER_STARTED)
    cluster.until(lambda: stopped in host_agent.log(), "a container that waits for its release", SECONDS)
    # What the engine has not on its disk it forgets; then there is no container to be taken for one that ran.
    host_agent.run("sync")
    host_agent.disarm()
    host_agent.power_cut()
    host_agent.boot()
    shown = cluster.finish(run, SECONDS)
    assert (shown["state"], shown["attempt"]) == ("RUN_STATE_SUCCEEDED", 1)
    assert cluster.log(run) == b"begun\n"
    assert terminal_facts(cluster, shown["id"]) == 1


def _spooled(host_agent: HostAgent) -> int:
    return int(host_agent.run(f"stat --format %s {SPOOL}").stdout)
