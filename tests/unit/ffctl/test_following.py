"""Following a run across lost connections, later attempts, Ctrl-C and readers that leave."""

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastflow.v1 import logs_pb2, runs_pb2
from ffctl.follow import Notes, Outages

from .conftest import RUN_ID, SHORT_ID, Ffctl, Gate, ScriptedServer, refuse, run_of
from .terminal import CTRL_C, PATIENCE_SECONDS, Terminal

Spawn = Callable[..., subprocess.Popen[bytes]]

OUTPUT = b"".join(b"line %d\n" % number for number in range(1000))


def log_message(offset: int, data: bytes, **fields: Any) -> logs_pb2.ReadLogResponse:
    return logs_pb2.ReadLogResponse(
        offset=offset, data=data, next_offset=offset + len(data), attempt=fields.pop("attempt", 1), **fields
    )


def running(number: int = 1) -> runs_pb2.Run:
    attempts = [runs_pb2.Attempt(number=n, agent=f"worker-{n}") for n in range(1, number + 1)]
    return run_of("RUNNING", attempt=number, attempts=attempts)


def ended(state: str = "SUCCEEDED", number: int = 1) -> runs_pb2.Run:
    run = running(number)
    run.state = runs_pb2.RunState.Value(f"RUN_STATE_{state}")
    return run


@pytest.fixture
def following(server: ScriptedServer) -> Gate:
    """A run that writes one line, and ends when the gate is opened."""
    gate = Gate()

    def watch(_request: Any, _context: Any) -> Iterator[runs_pb2.WatchRunResponse]:
        yield runs_pb2.WatchRunResponse(run=running())
        gate.wait()
        yield runs_pb2.WatchRunResponse(run=ended("CANCELLED"))

    def read(_request: Any, _context: Any) -> Iterator[logs_pb2.ReadLogResponse]:
        yield log_message(0, b"first line\n")
        gate.wait()
        yield log_message(11, b"last line\n", sealed=True)

    def cancel(_request: Any, _context: Any) -> runs_pb2.CancelRunResponse:
        gate.open()
        return runs_pb2.CancelRunResponse(run=running())

    server.answers |= {
        "CreateRun": lambda request, context: runs_pb2.CreateRunResponse(run=run_of("QUEUED")),
        "GetRun": lambda request, context: runs_pb2.GetRunResponse(run=running()),
        "WatchRun": watch,
        "ReadLog": read,
        "CancelRun": cancel,
    }
    return gate


def test_what_a_run_waits_for_while_it_is_prepared_is_told_as_it_changes_and_is_no_warning(
    server: ScriptedServer, ffctl: Ffctl
) -> None:
    def prepared(said: str, trouble: str = "") -> runs_pb2.WatchRunResponse:
        attempts = [runs_pb2.Attempt(number=1, agent="worker-1", message=said)]
        return runs_pb2.WatchRunResponse(run=run_of("PREPARING", attempt=1, attempts=attempts, message=trouble or said))

    watched = [
        prepared("it waits for a place"),
        prepared("it waits for a place", 'agent "worker-1" is out of reach'),
        prepared("its environment is being prepared"),
        runs_pb2.WatchRunResponse(run=running()),
        runs_pb2.WatchRunResponse(run=ended()),
    ]
    server.answers |= {
        "GetRun": lambda request, context: runs_pb2.GetRunResponse(run=prepared("it waits for a place").run),
        "WatchRun": lambda request, context: watched,
        "ReadLog": lambda request, context: [log_message(0, b"", sealed=True)],
    }
    done = ffctl("logs", "-f", SHORT_ID)
    assert done.code == 0
    assert done.err.splitlines()[:6] == [
        f"run {SHORT_ID}: preparing on worker-1: it waits for a place",
        'warning: agent "worker-1" is out of reach',
        'agent "worker-1" is back to normal',
        f"run {SHORT_ID}: preparing on worker-1: its environment is being prepared",
        f"run {SHORT_ID}: running on worker-1",
        done.err.splitlines()[5],
    ]


def test_an_agent_out_of_reach_is_not_told_to_be_back_once_another_has_the_next_attempt() -> None:
    said: list[str] = []
    notes = Notes(said.append)
    away = running()
    away.message = 'agent "worker-1" is out of reach'
    # What was between them a slow follower never saw.
    for run in (away, running(2)):
        notes.of_run(run)
    assert said == ['warning: agent "worker-1" is out of reach']


def test_a_broken_stream_is_resumed_at_the_next_byte(server: ScriptedServer, ffctl: Ffctl) -> None:
    def read(request: logs_pb2.ReadLogRequest, context: Any) -> Iterator[logs_pb2.ReadLogResponse]:
        end = request.offset + 2500
        yield log_message(request.offset, OUTPUT[request.offset : end], sealed=end >= len(OUTPUT))
        if end < len(OUTPUT):
            refuse(context, "UNAVAILABLE", "the control plane is stopping")

    server.answers |= {
        "GetRun": lambda request, context: runs_pb2.GetRunResponse(run=running()),
        "WatchRun": lambda request, context: [runs_pb2.WatchRunResponse(run=ended())],
        "ReadLog": read,
    }
    done = ffctl("logs", "-f", SHORT_ID)
    assert (done.code, done.out) == (0, OUTPUT)
    offsets = [(request.attempt, request.offset) for request in server.asked(logs_pb2.ReadLogRequest)]
    assert offsets == [(0, 0), (1, 2500), (1, 5000), (1, 7500)]


def test_a_server_that_restarts_is_waited_for(server: ScriptedServer, ffctl: Ffctl, following: Gate) -> None:
    first_line_sent = threading.Event()
    read = server.answers["ReadLog"]

    def read_twice(request: Any, context: Any) -> Iterator[logs_pb2.ReadLogResponse]:
        if request.offset:
            yield log_message(11, b"last line\n", sealed=True)
            return
        for message in read(request, context):
            yield message
            first_line_sent.set()

    def restart() -> None:
        assert first_line_sent.wait(PATIENCE_SECONDS)
        server.stop()
        following.open()
        server.start()

    server.answers["ReadLog"] = read_twice
    restarting = threading.Thread(target=restart)
    restarting.start()
    done = ffctl("run", "etl", "--follow")
    restarting.join()
    assert (done.code, done.out) == (1, b"first line\nlast line\n")
    assert done.err.count("connection lost") == 1


def test_a_server_that_restarts_puts_no_line_of_the_grpc_library_on_the_screen(
    server: ScriptedServer, spawn: Spawn, following: Gate
) -> None:
    follower = spawn("logs", SHORT_ID, "--follow", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert follower.stdout is not None
    assert follower.stdout.readline() == b"first line\n"
    server.stop()
    following.open()
    server.start()
    _, errors = follower.communicate(timeout=PATIENCE_SECONDS)
    assert b"connection lost" in errors
    assert b"transport" not in errors


def test_a_connection_that_one_stream_has_back_before_the_other_misses_it_is_told_lost_once(
    server: ScriptedServer, ffctl: Ffctl
) -> None:
    line_sent, watching_again, read_to_end = threading.Event(), threading.Event(), threading.Event()

    def watch(_request: Any, context: Any) -> Iterator[runs_pb2.WatchRunResponse]:
        yield runs_pb2.WatchRunResponse(run=running())
        assert line_sent.wait(PATIENCE_SECONDS)
        if not watching_again.is_set():
            watching_again.set()
            refuse(context, "UNAVAILABLE", "the control plane is stopping")
        yield runs_pb2.WatchRunResponse(run=running())
        watching_twice.open()
        assert read_to_end.wait(PATIENCE_SECONDS)
        yield runs_pb2.WatchRunResponse(run=ended())

    def read(request: Any, context: Any) -> Iterator[logs_pb2.ReadLogResponse]:
        if request.offset:
            yield log_message(11, b"last line\n", sealed=True)
            read_to_end.set()
            return
        yield log_message(0, b"first line\n")
        line_sent.set()
        watching_twice.wait()
        refuse(context, "UNAVAILABLE", "the control plane is stopping")

    watching_twice = Gate()
    server.answers |= {
        "CreateRun": lambda request, context: runs_pb2.CreateRunResponse(run=run_of("QUEUED")),
        "WatchRun": watch,
        "ReadLog": read,
    }
    done = ffctl("run", "etl", "--follow")
    assert (done.code, done.out) == (0, b"first line\nlast line\n")
    assert done.err.count("connection lost") == 1


def test_an_outage_begins_once_however_late_a_stream_misses_the_connection() -> None:
    outages = Outages()
    for stream in ("state", "output"):
        outages.opened(stream, None)
        outages.heard(stream)
    assert outages.begins("output")
    outages.opened("output", None)
    assert not outages.begins("output"), "nobody answers yet"
    outages.opened("output", None)
    outages.heard("output")
    outages.heard("state")
    assert not outages.begins("state"), "it heard what was on its way before, and misses the old connection only now"
    outages.opened("state", None)
    outages.heard("state")
    assert outages.begins("state")


def test_the_output_of_a_later_attempt_follows_that_of_the_first(server: ScriptedServer, ffctl: Ffctl) -> None:
    second_began = Gate()

    def watch(_request: Any, _context: Any) -> Iterator[runs_pb2.WatchRunResponse]:
        yield runs_pb2.WatchRunResponse(run=running(1))
        second_began.wait()
        yield runs_pb2.WatchRunResponse(run=running(2))
        yield runs_pb2.WatchRunResponse(run=ended(number=2))

    def read(request: logs_pb2.ReadLogRequest, _context: Any) -> Iterator[logs_pb2.ReadLogResponse]:
        attempt = request.attempt or 1
        yield log_message(0, b"attempt %d\n" % attempt, attempt=attempt, sealed=True)
        second_began.open()

    server.answers |= {
        "CreateRun": lambda request, context: runs_pb2.CreateRunResponse(run=run_of("QUEUED")),
        "WatchRun": watch,
        "ReadLog": read,
    }
    done = ffctl("run", "etl", "--follow")
    assert (done.code, done.out) == (0, b"attempt 1\nattempt 2\n")


def test_of_an_attempt_that_another_follows_at_once_it_is_told_that_it_is_lost(
    server: ScriptedServer, ffctl: Ffctl
) -> None:
    again, done = running(3), ended(number=3)
    for run in (again, done):
        for attempt in run.attempts[:2]:
            attempt.state = runs_pb2.RUN_STATE_LOST
            attempt.message = f'agent "{attempt.agent}" was out of reach for 60 s'
    waiting = run_of("QUEUED", attempt=1, attempts=again.attempts[:1], message="no agent has room")
    # What was between them a slow follower never saw.
    watched = [runs_pb2.WatchRunResponse(run=run) for run in (running(1), waiting, again, done)]
    server.answers |= {
        "CreateRun": lambda request, context: runs_pb2.CreateRunResponse(run=run_of("QUEUED")),
        "WatchRun": lambda request, context: watched,
        "ReadLog": lambda request, context: [log_message(0, b"", attempt=request.attempt or 3, sealed=True)],
    }
    followed = ffctl("run", "etl", "--follow")
    told = [line for line in followed.err.splitlines() if "is lost" in line]
    assert told == [
        f'warning: attempt {number} is lost: agent "worker-{number}" was out of reach for 60 s' for number in (1, 2)
    ]
    assert followed.code == 0


def test_a_lost_run_ends_although_its_log_was_never_completed(server: ScriptedServer, ffctl: Ffctl) -> None:
    never = threading.Event()

    def read(_request: Any, context: Any) -> Iterator[logs_pb2.ReadLogResponse]:
        context.add_callback(never.set)
        yield log_message(0, b"half a line")
        never.wait(PATIENCE_SECONDS)

    server.answers |= {
        "CreateRun": lambda request, context: runs_pb2.CreateRunResponse(run=run_of("QUEUED")),
        "WatchRun": lambda request, context: [runs_pb2.WatchRunResponse(run=ended("LOST"))],
        "ReadLog": read,
    }
    done = ffctl("run", "etl", "--follow")
    assert (done.code, done.out) == (1, b"half a line")
    assert "the rest of the log has not arrived yet" in done.err
    assert f"ffctl logs -f {SHORT_ID} --from 11" in done.err


def test_a_run_cancelled_while_queued_ends_although_it_never_had_a_log(server: ScriptedServer, ffctl: Ffctl) -> None:
    never = threading.Event()

    def read(_request: Any, context: Any) -> Iterator[logs_pb2.ReadLogResponse]:
        context.add_callback(never.set)
        never.wait(PATIENCE_SECONDS)
        yield from ()

    server.answers |= {
        "CreateRun": lambda request, context: runs_pb2.CreateRunResponse(run=run_of("QUEUED")),
        "WatchRun": lambda request, context: [runs_pb2.WatchRunResponse(run=run_of("CANCELLED"))],
        "ReadLog": read,
    }
    done = ffctl("run", "etl", "--follow")
    assert (done.code, done.out) == (1, b"")
    assert "not arrived" not in done.err


def test_ctrl_c_without_a_terminal_detaches_and_says_how_to_come_back(
    server: ScriptedServer, spawn: Spawn, following: Gate
) -> None:
    process = spawn("run", "etl", "--follow")
    assert process.stdout is not None
    assert process.stdout.readline() == b"first line\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert f"detached from run {SHORT_ID}, which goes on" in err.decode()
    assert f"ffctl logs -f {SHORT_ID} --from 11" in err.decode()
    assert server.asked(runs_pb2.CancelRunRequest) == []


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, as the kernel gives it to the main thread as a rule."""
    process.send_signal(signal.SIGINT)


def interrupt_another_thread(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C that finds the main thread asleep and does not wake it, as when it comes just before it sleeps."""
    libc = ctypes.CDLL(None, use_errno=True)
    others = sorted(int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir())[1:]
    assert libc.tgkill(process.pid, others[0], signal.SIGINT) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.parametrize("interrupt", [interrupt, interrupt_another_thread])
def test_ctrl_c_before_the_run_is_known_says_how_to_repeat_safely(
    server: ScriptedServer, spawn: Spawn, interrupt: Callable[[subprocess.Popen[bytes]], None]
) -> None:
    asked, over = threading.Event(), threading.Event()
    seconds_left: list[float] = []

    def create(_request: Any, context: Any) -> runs_pb2.CreateRunResponse:
        def ended() -> None:
            seconds_left.append(context.time_remaining())
            over.set()

        context.add_callback(ended)
        asked.set()
        over.wait(PATIENCE_SECONDS)
        return runs_pb2.CreateRunResponse()

    server.answers["CreateRun"] = create
    process = spawn("run", "etl")
    assert asked.wait(PATIENCE_SECONDS)
    interrupt(process)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    (request,) = server.asked(runs_pb2.CreateRunRequest)
    assert (process.returncode, out) == (130, b"")
    assert f"repeat with --request-id {request.request_id}" in err.decode()
    assert seconds_left[0] > 1, "noticed only when the call's own time was over"
    assert "Traceback" not in err.decode()


def test_ctrl_c_detaches_although_nobody_takes_the_output(
    server: ScriptedServer, spawn: Spawn, following: Gate
) -> None:
    full = threading.Event()

    def read(_request: Any, context: Any) -> Iterator[logs_pb2.ReadLogResponse]:
        context.add_callback(full.set)
        yield log_message(0, b"x" * 1_000_000)
        full.wait(PATIENCE_SECONDS)

    server.answers["ReadLog"] = read
    process = spawn("run", "etl", "--follow")
    assert process.stdout is not None
    assert process.stdout.read(1) == b"x"
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_SECONDS) == 130
    rest = process.stdout.read()
    assert process.stderr is not None
    # What it wrote and where it says to go on fit together to the byte.
    assert f"--from {1 + len(rest)}\n" in process.stderr.read().decode()


def test_a_reader_that_leaves_is_met_with_silence(spawn: Spawn, following: Gate) -> None:
    process = spawn("run", "etl", "--follow")
    assert process.stdout is not None
    assert process.stderr is not None
    # Output and state come on streams of their own, in any order.
    assert process.stdout.readline() == b"first line\n"
    assert process.stderr.readline().decode() == f"run {SHORT_ID}: running on worker-1\n"
    process.stdout.close()
    following.open()
    assert process.wait(PATIENCE_SECONDS) == 130
    assert process.stderr.read() == b""


def test_ctrl_c_on_a_terminal_asks_and_cancels(server: ScriptedServer, spawn: Spawn, following: Gate) -> None:
    terminal = Terminal(spawn, "run", "etl", "--follow")
    terminal.until("first line")
    terminal.type(CTRL_C)
    terminal.until("[c]ancel it, [d]etach")
    terminal.type("c\n")
    assert terminal.end() == 1
    assert "last line" in terminal.seen
    assert "CANCELLED" in terminal.seen
    (cancel,) = server.asked(runs_pb2.CancelRunRequest)
    assert (cancel.id, len(cancel.request_id)) == (RUN_ID, 36)


def test_ctrl_c_on_a_terminal_asks_and_detaches(server: ScriptedServer, spawn: Spawn, following: Gate) -> None:
    terminal = Terminal(spawn, "run", "etl", "--wait")
    terminal.until("running on worker-1")
    terminal.type(CTRL_C)
    terminal.until("[c]ancel it, [d]etach")
    terminal.type("d\n")
    assert terminal.end() == 130
    assert server.asked(runs_pb2.CancelRunRequest) == []


def test_a_second_ctrl_c_detaches(spawn: Spawn, following: Gate) -> None:
    terminal = Terminal(spawn, "run", "etl", "--follow")
    terminal.until("first line")
    terminal.type(CTRL_C)
    terminal.until("[d]etach")
    terminal.type(CTRL_C)
    assert terminal.end() == 130


def test_enter_goes_on_following(spawn: Spawn, following: Gate) -> None:
    terminal = Terminal(spawn, "run", "etl", "--follow")
    terminal.until("first line")
    terminal.type(CTRL_C)
    terminal.until("[Enter] to go on")
    following.open()
    terminal.type("\n")
    assert terminal.end() == 1
    assert "last line" in terminal.seen
