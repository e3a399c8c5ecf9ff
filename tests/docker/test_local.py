"""`ffctl run --local` with containers of a real engine: what an agent would do, with no server."""

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from fastflow_agent.runtime.container_spec import LABEL_AGENT, LABEL_SLOT

from tests.cluster import Cluster
from tests.cluster.local import LocalRuns
from tests.cluster.program import PATIENCE_SECONDS
from tests.cluster.programs import let_end
from tests.cluster.scenarios import TRIES
from tests.slots import built_source, source_archive, tiny_wheel

ENDLESS = "import time\nprint('up', flush=True)\ntime.sleep(600)"


@pytest.fixture
def local(tmp_path: Path, runner_image: str) -> Iterator[LocalRuns]:
    """Local runs of this test."""
    with LocalRuns(tmp_path, "docker", FASTFLOW_IMAGE=runner_image, FASTFLOW_NETWORK="none") as made:
        yield made


def test_the_output_comes_byte_for_byte_on_stdout_and_the_verdict_on_stderr(local: LocalRuns) -> None:
    main = """
        import os, sys
        block = bytes(range(256)) * 4096
        for _ in range(8):
            os.write(1, block)
            os.write(2, b"\\xff err without end")
        sys.stdout.write("no newline")
    """
    block = bytes(range(256)) * 4096
    expected = (block + b"\xff err without end") * 8 + b"no newline"
    ended = local.run(local.pipeline("bytes", main))
    assert (ended.exit_code, len(ended.stdout)) == (0, len(expected))
    assert hashlib.sha256(ended.stdout).digest() == hashlib.sha256(expected).digest()
    assert "local run of bytes SUCCEEDED" in ended.stderr
    assert local.left_behind == []


def test_it_runs_as_an_agent_would_run_it(local: LocalRuns) -> None:
    main = """
        import os
        print(os.getuid(), os.getcwd(), os.environ["HOME"], os.environ["REGION"], os.environ["DAY"])
        print(open("/proc/self/status").read().split("CapEff:")[1].split()[0])
        try:
            open("here", "w")
        except OSError as error:
            print(error.strerror)
        open("/tmp/there", "w").close()
    """
    ended = local.run(local.pipeline("facts", main, pipeline={"default_env": {"REGION": "north"}}), "-e", "DAY=1")
    assert ended.text.splitlines() == [
        "1000 /fastflow/code /tmp north 1",
        "0000000000000000",
        "Read-only file system",
    ]


def test_a_failed_run_exits_with_one_and_tells_the_programs_own_code(local: LocalRuns) -> None:
    ended = local.run(local.pipeline("seven", "raise SystemExit(7)"))
    assert ended.exit_code == 1
    assert "FAILED (exit code 7)" in ended.stderr


def test_memory_over_the_hard_limit_is_an_oom_kill_that_is_explained(local: LocalRuns) -> None:
    main = "blocks = []\nwhile True: blocks.append(bytearray(8 * 1024 * 1024))"
    ended = local.run(local.pipeline("hog", main, pipeline={"mem_hard_limit": "96m"}))
    assert ended.exit_code == 1
    assert "FAILED (OOM_KILLED, exit code 137)" in ended.stderr
    assert "hard memory limit of 96 MiB" in ended.stderr
    assert local.left_behind == []


def test_crossing_a_soft_limit_warns_on_stderr_and_harms_nothing(local: LocalRuns) -> None:
    main = """
        import os, time
        block = bytearray(80 << 20)
        while not os.path.exists("/tmp/go"): time.sleep(0.05)
        print('done')
    """
    folder = local.pipeline("wide", main, pipeline={"mem_hard_limit": "256m", "mem_soft_limit": "64m"})
    with local.started(folder) as process:
        Cluster.read_until(process, "warning: memory above its soft limit of 64 MiB")
        let_end((local.data_dir / "slots").iterdir())
        ended = local.end_of(process)
    assert (ended.exit_code, ended.stdout) == (0, b"done\n")
    # It was looked at while it lived, so all is known of its use, however busy the host was at its end.
    assert "peak memory" in ended.stderr
    assert "unavailable" not in ended.stderr


def test_a_time_limit_ends_it(local: LocalRuns) -> None:
    ended = local.run(local.pipeline("slow", "import time; time.sleep(60)"), "--timeout", "1")
    assert ended.exit_code == 1
    assert "TIMED_OUT" in ended.stderr


def test_requirements_are_installed_once_and_are_there_for_the_next_run(local: LocalRuns) -> None:
    file, wheel = tiny_wheel("tiny", "def greet(): print('hello from the wheel')\n")
    folder = local.pipeline("packaged", "import tiny; tiny.greet()", requirements=f"./{file}\n")
    (folder / file).write_bytes(wheel)
    first = local.run(folder)
    generations = sorted((local.data_dir / "uv" / "generations").iterdir())
    second = local.run(folder)
    assert (first.exit_code, second.exit_code) == (0, 0)
    # uv says before what it has linked.
    assert [ended.stdout.splitlines()[-1] for ended in (first, second)] == [b"hello from the wheel"] * 2
    assert sorted((local.data_dir / "uv" / "generations").iterdir()) == generations
    assert local.left_behind == []


def test_a_run_as_a_plain_process_leaves_no_cache_that_containers_can_not_use(local: LocalRuns) -> None:
    folder = local.pipeline("either", "print('ran')")
    for runtime in ("docker", "process", "docker"):
        ended = local.run(folder, "--runtime", runtime)
        assert (ended.exit_code, ended.stdout) == (0, b"ran\n"), ended.stderr


def test_requirements_that_can_not_be_installed_fail_the_run_in_uvs_own_words(local: LocalRuns) -> None:
    ended = local.run(local.pipeline("refused", "print('ran')", requirements="./not-there.whl\n"))
    assert ended.exit_code == 1
    assert "FAILED (ENVIRONMENT)" in ended.stderr
    assert b"not-there.whl" in ended.stdout
    assert b"ran\n" not in ended.stdout
    assert local.left_behind == []


def test_secrets_of_a_file_reach_the_program_and_are_masked_in_its_output(local: LocalRuns, tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text("# the test's\nAPI_KEY=hunter2hunter2\n\nDAY=secret-day\n")
    main = "import os; print(os.environ['API_KEY'][::-1], os.environ['API_KEY'], os.environ['DAY'])"
    folder = local.pipeline("keyed", main)
    ended = local.run(folder, "--env-file", str(tmp_path / "secrets"), "--env", "DAY=monday")
    assert ended.text == f"{'hunter2hunter2'[::-1]} {'*' * 14} monday"
    assert _holding(local.cache, b"hunter2hunter2") == []


def test_ctrl_c_stops_the_program_and_leaves_nothing(local: LocalRuns) -> None:
    main = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("asked to end", flush=True), sys.exit(0)))
        print("up", flush=True)
        time.sleep(60)
    """
    with local.started(local.pipeline("endless", main)) as process:
        assert local.line_of(process) == b"up\n"
        (slot,) = _slots(local)
        process.send_signal(signal.SIGINT)
        ended = local.end_of(process)
    assert (ended.exit_code, ended.stdout) == (1, b"asked to end\n")
    assert "CANCELLED" in ended.stderr
    _assert_gone(local, slot)


def test_ctrl_c_while_packages_are_installed_leaves_nothing(local: LocalRuns) -> None:
    folder = local.pipeline("building", "print('ran')", requirements="./slow-1.0.tar.gz\n")
    build = "import time\ndef build_wheel(*_, **__): time.sleep(600)\n"
    (folder / "slow-1.0.tar.gz").write_bytes(source_archive("slow", built_source(build)))
    with local.started(folder) as process:
        while not (local.data_dir / "agent-id").exists() or not _containers(local):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        ended = local.end_of(process)
    assert (ended.exit_code, ended.stdout) == (1, b"")
    assert "CANCELLED (CANCEL_REQUESTED): cancelled before the program began" in ended.stderr
    assert _containers(local) == []
    assert local.left_behind == []


def test_a_second_ctrl_c_does_not_wait_for_the_program(local: LocalRuns) -> None:
    # The program would go on for the ten seconds of grace. On a busy machine to end it may take as long.
    assert any(_seconds_to_end_at_once(local, f"deaf{number}") < 8 for number in range(TRIES))


def _seconds_to_end_at_once(local: LocalRuns, name: str) -> float:
    """How long a run that heeds no SIGTERM takes to its end from the second Ctrl-C on."""
    main = """
        import signal, time
        def deaf(*_): print("no", flush=True)
        signal.signal(signal.SIGTERM, deaf)
        print("up", flush=True)
        while True: time.sleep(1)
    """
    with local.started(local.pipeline(name, main)) as process:
        assert local.line_of(process) == b"up\n"
        (slot,) = _slots(local)
        process.send_signal(signal.SIGINT)
        assert local.line_of(process) == b"no\n"
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        ended = local.end_of(process)
        seconds = time.monotonic() - begin
    assert (ended.exit_code, "CANCELLED" in ended.stderr) == (1, True)
    _assert_gone(local, slot)
    return seconds


def test_a_reader_that_leaves_stops_the_program(local: LocalRuns) -> None:
    main = "import time\nwhile True:\n    print('line', flush=True)\n    time.sleep(0.05)"
    with local.started(local.pipeline("chatty", main)) as process:
        assert local.line_of(process) == b"line\n"
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=PATIENCE_SECONDS) == 1
    assert local.left_behind == []


def test_what_a_killed_local_run_left_is_cleared_up_by_the_next(local: LocalRuns) -> None:
    with local.started(local.pipeline("endless", ENDLESS)) as process:
        assert local.line_of(process) == b"up\n"
        (slot,) = _slots(local)
        process.kill()
    assert _slots(local) == [slot]
    ended = local.run(local.pipeline("next", "print('next')"))
    assert (ended.exit_code, ended.stdout) == (0, b"next\n")
    _assert_gone(local, slot)


def test_two_at_once_do_not_wait_for_each_other(local: LocalRuns) -> None:
    with local.started(local.pipeline("first", ENDLESS)) as first:
        assert local.line_of(first) == b"up\n"
        assert local.run(local.pipeline("second", "print('second')")).stdout == b"second\n"
        first.send_signal(signal.SIGTERM)
        assert local.end_of(first).exit_code == 1
    assert local.left_behind == []


def test_no_docker_engine_is_told_with_the_way_around(local: LocalRuns, tmp_path: Path) -> None:
    local.settings["FASTFLOW_DOCKER_HOST"] = f"unix://{tmp_path}/no.sock"
    ended = local.run(local.pipeline("hello", "print('hello')"))
    assert (ended.exit_code, ended.stdout) == (3, b"")
    assert "no.sock" in ended.stderr
    assert "--runtime process" in ended.stderr
    assert "neither cpu_hard_limit nor mem_hard_limit is enforced" in ended.stderr
    assert local.left_behind == []


def test_a_missing_image_fails_the_run_and_says_how_to_get_it(local: LocalRuns) -> None:
    local.settings["FASTFLOW_IMAGE"] = "fastflow/not-there:1"
    ended = local.run(local.pipeline("hello", "print('hello')"))
    assert ended.exit_code == 1
    assert "FAILED (IMAGE)" in ended.stderr
    assert "deploy/runner/build" in ended.stderr


def test_a_python_the_image_lacks_is_refused_naming_those_there_are(local: LocalRuns) -> None:
    ended = local.run(local.pipeline("old", "print('hello')", pipeline={"python_version": "3.2"}))
    assert (ended.exit_code, ended.stdout) == (4, b"")
    assert "python_version 3.2 is not in the runner image; there are: 3." in ended.stderr


def _containers(local: LocalRuns) -> list[dict[str, str]]:
    """Labels of all containers of the local runs."""
    client = docker.from_env()
    try:
        found = client.api.containers(all=True, filters={"label": f"{LABEL_AGENT}={local.agent_id}"})
        return [container["Labels"] for container in found]
    finally:
        client.close()


def _slots(local: LocalRuns) -> list[str]:
    return [labels[LABEL_SLOT] for labels in _containers(local) if LABEL_SLOT in labels]


def _assert_gone(local: LocalRuns, slot: str) -> None:
    assert local.left_behind == []
    assert _slots(local) == []
    client = docker.from_env()
    try:
        assert client.volumes.list(filters={"label": f"{LABEL_SLOT}={slot}"}) == []
    finally:
        client.close()
    # Groups of others come and go meanwhile, which os.walk passes over.
    groups = (name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names)
    assert [name for name in groups if slot in name] == []


def _holding(folder: Path, secret: bytes) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if secret in path.read_bytes()]
