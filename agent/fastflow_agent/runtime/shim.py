"""Runs one program of the process runtime and keeps its exit code: `python -I -S shim.py FOLDER PROGRAM ARGUMENT…`.

Returns once the program is about to run; a process in a session of its own stays with it and outlives the agent.
FOLDER gets `identity` (pids and start times of that process and of the program) and, in the end, `exit`.
"""

# Nothing of ours and little of the library is imported, to start within milliseconds.
# ruff: noqa: PTH104, PTH110, PTH118, PTH123, SIM105

import fcntl
import os
import signal
import sys


def main(folder: str, program: list[str]) -> None:
    """Start `program` unless it was started before."""
    lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    # Waits for a start under way: then it is either done, or its process is gone.
    fcntl.flock(lock, fcntl.LOCK_EX)
    if os.path.exists(os.path.join(folder, "identity")):
        return
    started, tell_started = os.pipe()
    if os.fork() == 0:
        os.close(lock)
        os.close(started)
        os.setsid()
        attend(folder, program, tell_started)
    else:
        os.close(tell_started)
        os.read(started, 1)


def attend(folder: str, program: list[str], tell_started: int) -> None:
    """Run `program` to its end and write down how it ended."""
    gate, opener = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(opener)
        os.close(tell_started)
        os.setsid()
        # Not before it can be found: a program nobody knows of could not be stopped.
        os.read(gate, 1)
        os.close(gate)
        os.execv(program[0], program)
    write(folder, "identity", " ".join(f"{pid}:{start_time(pid)}" for pid in (os.getpid(), child)))
    os.close(tell_started)
    os.write(opener, b"g")
    _, status = os.waitpid(child, 0)
    try:
        # What it left running ends with it, as in a container.
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    code = os.waitstatus_to_exitcode(status)
    write(folder, "exit", str(code if code >= 0 else 128 - code))


def start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat: with the pid it names one process for as long as the host is up."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]


def write(folder: str, name: str, text: str) -> None:
    """Write a file that is there whole or not at all."""
    draft = os.path.join(folder, name + ".draft")
    with open(draft, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(draft, os.path.join(folder, name))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
