"""Runs one program of the process runtime and keeps its exit code.

`python -I -S shim.py FOLDER AGENT OUTLIVES PROGRAM …` returns once the program is about to run, or fails, and then it
never will. A process in a session of its own stays with it and outlives the agent, whose pid is AGENT; OUTLIVES are the
seconds that the program may do so too, "" = no end is set.
FOLDER gets `identity` (pids and start times of that process and of the program) and, in the end, `exit`.
"""

# Nothing of ours and little of the library is imported, to start within milliseconds.
# ruff: noqa: PTH104, PTH108, PTH110, PTH118, PTH123, SIM105

import fcntl
import os
import select
import signal
import sys

STARTED = b"started"
GO = b"g"
EXIT_BYTES = 3
"""An exit code is at most 255."""
FAILED = 125
"""As of the start wrapper: the program did not begin."""


def main(folder: str, parent: str, outlives: str, program: list[str]) -> None:
    """Start `program` unless it was started before; exits with words of why if it could not be."""
    agent = os.pidfd_open(int(parent)) if outlives else None
    # Whoever has that pid is the agent for sure only while it is the parent: where the agent died before, that is init.
    if outlives and os.getppid() != int(parent):
        sys.exit("the agent died")
    lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    # Waits for a start under way: then it is either done, or its processes are gone.
    fcntl.flock(lock, fcntl.LOCK_EX)
    if os.path.exists(os.path.join(folder, "identity")):
        return
    told, tell = os.pipe()
    if os.fork() == 0:
        os.close(told)
        # The agent reads the other one to its end.
        os.dup2(1, 2)
        os.setsid()
        attend(folder, program, tell, lock, agent, float(outlives or 0))
    else:
        os.close(tell)
        word = os.read(told, 4096)
        if word != STARTED:
            sys.exit(word.decode() or "the process that was to attend to it died")


def attend(folder: str, program: list[str], tell: int, lock: int, agent: int | None, outlives: float) -> None:
    """Run `program` to its end and write down how it ended; says into `tell` that it begins, or why it does not.

    Where there is a descriptor of the agent, the program is killed `outlives` seconds after that has ended.
    """
    gate, opener = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(opener)
        become(program, gate)
    try:
        # Room for the last word: a program may fill the disk, and its exit code is still to be kept.
        draft(folder, "exit", " " * EXIT_BYTES)
        write(folder, "identity", " ".join(f"{pid}:{start_time(pid)}" for pid in (os.getpid(), child)))
        # Fails if who asked for it has given up, and counts on it that it never begins.
        os.write(tell, STARTED)
    except OSError as error:
        remove(folder, "identity")
        os.write(tell, str(error).encode())
        raise
    os.close(lock)
    os.close(tell)
    try:
        os.write(opener, GO)
    except BrokenPipeError:
        pass  # killed already, which is an end like any
    if agent is not None:
        end_after(agent, outlives, child)
    _, status = os.waitpid(child, 0)
    try:
        # What it left running ends with it, as in a container.
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    code = os.waitstatus_to_exitcode(status)
    write(folder, "exit", str(code if code >= 0 else 128 - code))


def end_after(agent: int, seconds: float, child: int) -> None:
    """Return once `child` has ended, or was killed `seconds` after `agent`."""
    ended = os.pidfd_open(child)
    if select.select([ended, agent], [], [])[0] == [agent] and not select.select([ended], [], [], seconds)[0]:
        for kill in (os.killpg, os.kill):
            try:
                kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has no group of its own in its first moment


def become(program: list[str], gate: int) -> None:
    """Be `program` once the word for it comes through `gate`; never returns."""
    try:
        os.setsid()
        # Not before it can be found: a program nobody knows of could not be stopped. Where the pipe ends without a
        # word, whoever was to write it down has failed, or died.
        if os.read(gate, 1) == GO:
            os.execv(program[0], program)
    finally:
        os._exit(FAILED)


def start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat: with the pid it names one process for as long as the host is up."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]


def write(folder: str, name: str, text: str) -> None:
    """Write a file that is there whole or not at all."""
    draft(folder, name, text)
    os.rename(os.path.join(folder, name + ".draft"), os.path.join(folder, name))


def draft(folder: str, name: str, text: str) -> None:
    """Write what is to become a file, over what an earlier draft of it had taken from the disk."""
    descriptor = os.open(os.path.join(folder, name + ".draft"), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.ftruncate(descriptor, len(text))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(folder: str, name: str) -> None:
    """Remove a file, if it is there."""
    try:
        os.unlink(os.path.join(folder, name))
    except FileNotFoundError:
        pass


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
