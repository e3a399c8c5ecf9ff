"""What a user is promised on every runtime: the same scenarios run on plain processes and in containers.

A test module inherits these classes and brings a `cluster` fixture with a started control plane and agent "worker-1".
"""

import json
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.identity import wait_until_gone
from tests.cluster.program import PATIENCE_SECONDS
from tests.cluster.programs import SLEEPER, TICKER, TIDY, TIDY_LOG, ticker_log
from tests.trees import content_of, files_below

TRIES = 10
"""How often something is measured that takes longer where others want the processors too."""


class MainJob:
    """One run from `ffctl run` to its verdict."""

    def test_output_reaches_standard_output_byte_for_byte_and_nothing_else_does(self, cluster: Cluster) -> None:
        output = bytes(range(256)) * 40 + b"\xff\xfe no newline at the end"
        cluster.add_pipeline("binary", f"import sys; sys.stdout.buffer.write({output!r})")
        done = cluster.ffctl("run", "binary", "--follow")
        assert done.stdout == output
        assert done.exit_code == 0

    def test_a_line_of_ten_megabytes_is_stored_byte_for_byte(self, cluster: Cluster) -> None:
        cluster.add_pipeline("long", "import sys; sys.stdout.write('y' * 10_000_000)")
        run = cluster.run("long")
        cluster.finish(run)
        assert cluster.log(run) == b"y" * 10_000_000

    def test_an_uncaught_exception_is_a_failed_run_with_its_traceback_in_the_log(self, cluster: Cluster) -> None:
        cluster.add_pipeline("broken", "raise ValueError('the order has no price')")
        done = cluster.ffctl("run", "broken", "--follow")
        assert done.exit_code == 1
        assert b"ValueError: the order has no price" in done.stdout
        shown = json.loads(cluster.ffctl("runs", "list", "-o", "json").stdout)["runs"][0]
        assert (shown["state"], shown["reason"], shown["exit_code"]) == ("RUN_STATE_FAILED", "REASON_EXIT_CODE", 1)

    def test_an_exit_code_passes_through(self, cluster: Cluster) -> None:
        cluster.add_pipeline("seven", "raise SystemExit(7)")
        shown = cluster.finish(cluster.run("seven"))
        assert (shown["state"], shown["exit_code"]) == ("RUN_STATE_FAILED", 7)

    def test_the_order_of_standard_output_and_error_is_kept(self, cluster: Cluster) -> None:
        cluster.add_pipeline("ticker", TICKER)
        run = cluster.run("ticker", "--env", "TICKS=10")
        cluster.finish(run)
        assert cluster.log(run) == ticker_log(10)

    def test_defaults_give_way_to_secrets_and_secrets_to_parameters(self, cluster: Cluster) -> None:
        main = """
            import os
            for name in ("ONE", "TWO", "THREE"):
                print(name, len(os.environ[name]))
        """
        cluster.add_pipeline("order", main, pipeline={"default_env": {"ONE": "1", "TWO": "1", "THREE": "1"}})
        for name in ("TWO", "THREE"):
            stored = cluster.ffctl("secrets", "set", name, "--pipeline", "order", value="twenty-two characters!")
            assert stored.exit_code == 0, stored.stderr
        done = cluster.ffctl("run", "order", "--env", "THREE=333", "--follow")
        assert done.stdout.split() == [b"ONE", b"1", b"TWO", b"22", b"THREE", b"3"]

    def test_a_secret_is_masked_in_the_log_and_stands_nowhere_in_clear(self, cluster: Cluster) -> None:
        value = "correct-horse-battery"
        cluster.add_pipeline("leaky", "import os, time; print('key:', os.environ['KEY'], flush=True); time.sleep(2)")
        cluster.ffctl("secrets", "set", "KEY", "--pipeline", "leaky", value=value)
        run = cluster.run("leaky", "--env", "PARAMETER=visible-only-to-the-run")
        cluster.wait_for_log(run, b"key:")
        # While the run lives is when a careless journal would hold it.
        assert _files_holding(cluster.folder, value.encode()) == []
        assert _files_holding(cluster.folder, b"visible-only-to-the-run") == []
        cluster.finish(run)
        assert cluster.log(run) == b"key: " + b"*" * len(value) + b"\n"
        shown = cluster.ffctl("runs", "show", run)
        assert value not in shown.text
        assert "visible-only-to-the-run" not in shown.text

    def test_code_is_pinned_when_the_run_is_created(self, cluster: Cluster) -> None:
        folder = cluster.add_pipeline("pinned", "import time; time.sleep(1); import part; print(part.NAME)")
        (folder / "part.py").write_text("NAME = 'old'")
        run = cluster.run("pinned")
        (folder / "part.py").write_text("NAME = 'new'")
        cluster.finish(run)
        assert cluster.log(run) == b"old\n"

    def test_a_line_is_seen_by_a_follower_within_200_ms_of_being_written(self, cluster: Cluster) -> None:
        main = "import time\nfor _ in range(20):\n    print(time.time(), flush=True)\n    time.sleep(0.1)\n"
        cluster.add_pipeline("clock", main)
        # The best of some, since this is about Fast-Flow and not about what else the machine does.
        assert any(_median_delay(cluster, "clock", 20) < 0.2 for _ in range(TRIES))

    def test_a_log_is_resumed_by_offset_and_its_end_shown_by_lines(self, cluster: Cluster) -> None:
        cluster.add_pipeline("count", "for n in range(1000): print(n)")
        run = cluster.run("count")
        cluster.finish(run)
        whole = b"".join(b"%d\n" % n for n in range(1000))
        assert cluster.ffctl("logs", run, "--from", "1000").stdout == whole[1000:]
        assert cluster.ffctl("logs", run, "--tail", "3").stdout == b"997\n998\n999\n"
        assert cluster.ffctl("logs", run[-8:]).stdout == whole

    def test_a_run_over_its_time_limit_is_stopped(self, cluster: Cluster) -> None:
        cluster.add_pipeline("slow", "import time; print('begun', flush=True); time.sleep(60)", pipeline={"timeout": 2})
        shown = cluster.finish(cluster.run("slow"))
        assert (shown["state"], shown["reason"]) == ("RUN_STATE_TIMED_OUT", "REASON_TIMEOUT")

    def test_a_cancelled_run_gets_sigterm_and_ends_cancelled(self, cluster: Cluster) -> None:
        cluster.add_pipeline("patient", TIDY)
        run = cluster.run("patient")
        cluster.wait_for_log(run, b"begun")
        assert cluster.ffctl("runs", "cancel", run).exit_code == 0
        assert cluster.finish(run)["state"] == "RUN_STATE_CANCELLED"
        assert cluster.log(run) == TIDY_LOG

    def test_a_repeated_request_gives_the_same_run(self, cluster: Cluster) -> None:
        cluster.add_pipeline("once", "print(1)")
        first = cluster.run("once", "--request-id", "order-17")
        assert cluster.run("once", "--request-id", "order-17") == first
        other = cluster.ffctl("run", "once", "--request-id", "order-17", "--env", "A=b")
        assert other.exit_code == 4
        assert "order-17" in other.stderr

    def test_ctrl_c_away_from_a_terminal_detaches_and_the_run_goes_on(self, cluster: Cluster) -> None:
        cluster.add_pipeline("ticker", TICKER)
        follower = cluster.spawn_ffctl("run", "ticker", "--follow")
        assert follower.stdout is not None
        follower.stdout.readline()
        follower.send_signal(signal.SIGINT)
        _, errors = follower.communicate(timeout=PATIENCE_SECONDS)
        assert follower.returncode == 130
        assert b"ffctl logs" in errors
        run = json.loads(cluster.ffctl("runs", "list", "-o", "json").stdout)["runs"][0]["id"]
        assert cluster.finish(run)["exit_code"] == 7
        assert cluster.log(run) == ticker_log()


class Crashes:
    """Whatever is killed in the middle: the run ends once, with its true verdict and its whole log."""

    @pytest.mark.parametrize("victims", [["agent"], ["controlplane"], ["agent", "controlplane"]], ids="+".join)
    @pytest.mark.parametrize("ends", [False, True], ids=["restarted at once", "restarted after the run ended"])
    def test_a_kill_in_the_middle_of_a_run_changes_nothing(
        self, cluster: Cluster, victims: list[str], ends: bool
    ) -> None:
        cluster.add_pipeline("ticker", TICKER)
        run = cluster.run("ticker")
        cluster.wait_for_log(run, b"tick 5 ")
        killed = [cluster.agent if victim == "agent" else cluster.controlplane for victim in victims]
        for program in killed:
            program.kill()
        if ends:
            wait_until_gone(cluster)
        for program in reversed(killed):
            program.start()
        shown = cluster.finish(run)
        assert (shown["state"], shown["exit_code"], shown["attempt"]) == ("RUN_STATE_FAILED", 7, 1)
        assert cluster.log(run) == ticker_log()
        assert terminal_facts(cluster, str(shown["id"])) == 1

    def test_a_run_queued_before_a_crash_of_the_control_plane_still_runs(self, cluster: Cluster) -> None:
        cluster.add_pipeline("ticker", TICKER)
        cluster.agent.kill()
        run = cluster.run("ticker", "--env", "TICKS=3")
        cluster.controlplane.kill()
        cluster.controlplane.start()
        cluster.agent.start()
        shown = cluster.finish(run)
        assert shown["exit_code"] == 7
        assert cluster.log(run) == ticker_log(3)

    def test_a_follower_survives_a_restart_of_the_control_plane_without_losing_a_byte(self, cluster: Cluster) -> None:
        cluster.add_pipeline("ticker", TICKER)
        follower = cluster.spawn_ffctl("run", "ticker", "--follow")
        assert follower.stdout is not None
        first = follower.stdout.readline()
        cluster.controlplane.kill()
        cluster.controlplane.start()
        rest, errors = follower.communicate(timeout=PATIENCE_SECONDS)
        assert first + rest == ticker_log(), errors.decode()
        assert follower.returncode == 1

    def test_sigterm_to_an_agent_leaves_its_runs_alone(self, cluster: Cluster) -> None:
        cluster.add_pipeline("ticker", TICKER)
        run = cluster.run("ticker")
        cluster.wait_for_log(run, b"tick 3 ")
        assert cluster.agent.stop() == 0
        cluster.agent.start()
        assert cluster.finish(run)["exit_code"] == 7
        assert cluster.log(run) == ticker_log()

    def test_an_agent_of_another_version_takes_over_what_the_one_before_had_started(self, cluster: Cluster) -> None:
        cluster.add_pipeline("ticker", TICKER)
        run = cluster.run("ticker")
        cluster.wait_for_log(run, b"tick 3 ")
        cluster.upgrade_agent("worker-1", "99.1.0")
        shown = cluster.finish(run)
        assert (shown["exit_code"], shown["attempt"]) == (7, 1)
        assert cluster.log(run) == ticker_log()
        cluster.until(lambda: cluster.show_agent("worker-1")["version"] == "99.1.0", "the other version to be shown")

    def test_a_cancel_while_the_agent_is_away_is_carried_out_when_it_returns(self, cluster: Cluster) -> None:
        cluster.add_pipeline("sleeper", SLEEPER)
        run = cluster.run("sleeper")
        cluster.wait_for_log(run, b"begun")
        cluster.agent.kill()
        assert cluster.ffctl("runs", "cancel", run).exit_code == 0
        cluster.agent.start()
        assert cluster.finish(run)["state"] == "RUN_STATE_CANCELLED"


class Leftovers:
    """After a run nothing of it stays on the worker."""

    def test_the_slot_of_a_finished_run_leaves_no_folder_and_no_reservation(self, cluster: Cluster) -> None:
        cluster.add_pipeline("hello", "print('hello')")
        cluster.finish(cluster.run("hello"))
        slots = Path(cluster.agent.settings["FASTFLOW_DATA_DIR"]) / "slots"
        cluster.until(lambda: not list(slots.iterdir()), "the slot folder to be removed")
        assert cluster.show_agent("worker-1")["reserved"]["memory_bytes"] == "0"


def _median_delay(cluster: Cluster, pipeline: str, lines: int) -> float:
    """Follows a run whose lines are the times at which they were written; how many seconds later they were seen."""
    follower = cluster.spawn_ffctl("run", pipeline, "--follow")
    assert follower.stdout is not None
    delays = sorted(time.time() - float(line) for line in follower.stdout)
    follower.communicate(timeout=PATIENCE_SECONDS)
    assert len(delays) == lines
    return delays[lines // 2]


def terminal_facts(cluster: Cluster, run: str) -> int:
    """How often an end was recorded and applied for the run."""
    with closing(sqlite3.connect(f"file:{_database(cluster.folder)}?mode=ro", uri=True)) as connection:
        query = "SELECT count(*) FROM attempt_events WHERE run_id = ? AND kind = 'ended' AND rejection = ''"
        return int(connection.execute(query, (run,)).fetchone()[0])


def _database(folder: Path) -> Path:
    (found,) = (folder / "controlplane").glob("*.db")
    return found


def _files_holding(folder: Path, needle: bytes) -> list[str]:
    """Files under `folder`, spool files apart, that contain `needle` in clear."""
    return [
        str(path.relative_to(folder))
        for path in files_below(folder)
        if path.name != "log" and needle in content_of(path)
    ]
