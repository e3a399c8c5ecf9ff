"""`ffctl runs rerun` and `ffctl runs diff`: what is asked of the server, and how the answer reads."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from fastflow.v1 import limits_pb2, runs_pb2

from .conftest import RUN_ID, SHORT_ID, Ffctl, ScriptedServer, run_of
from .terminal import Terminal

OTHER_ID = "01890a5d-ac96-774b-bcce-b3025e6f7a8b"
OTHER_SHORT_ID = "5e6f7a8b"
CODE = """diff --git a/main.py b/main.py
--- a/main.py
+++ b/main.py
@@ -1 +1 @@
-print("one")
+print("two")
"""


def provenance(*packages: str) -> runs_pb2.Provenance:
    return runs_pb2.Provenance(
        image="runner:1",
        image_digest="sha256:" + "cd" * 32,
        uv_version="0.9.1",
        python_version="3.11",
        packages=packages,
    )


def pair() -> runs_pb2.DiffRunsResponse:
    """Two runs that differ in nothing."""
    found = runs_pb2.DiffRunsResponse(a=run_of("SUCCEEDED", exit_code=0), b=run_of("FAILED", exit_code=3))
    found.b.id = OTHER_ID
    for run in (found.a, found.b):
        run.provenance.CopyFrom(provenance("numpy==2.1.0"))
    return found


def different() -> runs_pb2.DiffRunsResponse:
    """Two runs that differ in most things."""
    found = pair()
    found.a.commit, found.a.commit_subject = "a1" * 20, "Round down"
    found.b.commit, found.b.commit_subject = "b2" * 20, "Round up"
    found.a.bundle_digest, found.b.bundle_digest = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    found.code.unified_diff = CODE
    found.packages.add(name="numpy", a="2.1.0", b="2.2.0")
    found.packages.add(name="pandas", b="2.2.3")
    for name, change in (("DAY", "VALUE"), ("NEW", "ADDED"), ("OLD", "REMOVED")):
        found.parameters.add(name=name, change=runs_pb2.VariableChange.Value(f"VARIABLE_CHANGE_{change}"))
    found.default_environment.add(name="REGION", change=runs_pb2.VARIABLE_CHANGE_VALUE)
    for field, a, b in (
        ("limits.memory_hard_bytes", str(2**29), str(2**30)),
        ("limits.cpu_soft_milli_cores", "0", "800"),
        ("timeout", "0s", "90s"),
        ("agent", "worker-1", "worker-2"),
        ("provenance.secret_versions.TOKEN", "", "3"),
        ("from_a_later_server", "x", "y"),
    ):
        found.values.add(field=field, a=a, b=b)
    return found


def differ(server: ScriptedServer, found: runs_pb2.DiffRunsResponse) -> None:
    server.answers["DiffRuns"] = lambda request, context: found


def repeat(server: ScriptedServer, *states: runs_pb2.Run) -> None:
    def watch(_request: Any, _context: Any) -> Any:
        for state in states:
            yield runs_pb2.WatchRunResponse(run=state)

    server.answers |= {
        "RerunRun": lambda request, context: runs_pb2.RerunRunResponse(run=run_of("QUEUED")),
        "WatchRun": watch,
    }


def test_rerun_prints_the_new_run_s_id_alone_and_returns(server: ScriptedServer, ffctl: Ffctl) -> None:
    repeat(server)
    ended = ffctl("runs", "rerun", OTHER_SHORT_ID)
    assert (ended.code, ended.out) == (0, f"{SHORT_ID}\n".encode())
    (request,) = server.asked(runs_pb2.RerunRunRequest)
    assert (request.id, request.latest, len(request.request_id)) == (OTHER_SHORT_ID, False, 36)


def test_rerun_waits_for_the_end_and_its_exit_code_tells_it(server: ScriptedServer, ffctl: Ffctl) -> None:
    repeat(server, run_of("FAILED"))
    ended = ffctl("runs", "rerun", OTHER_SHORT_ID, "--latest", "--wait", "--request-id", "nightly")
    assert ended.code == 1
    (request,) = server.asked(runs_pb2.RerunRunRequest)
    assert (request.latest, request.request_id) == (True, "nightly")


def test_run_sends_the_commit_or_branch(server: ScriptedServer, ffctl: Ffctl) -> None:
    server.answers["CreateRun"] = lambda request, context: runs_pb2.CreateRunResponse(run=run_of("QUEUED"))
    ffctl("run", "etl", "--ref", "topic/fast")
    assert server.asked(runs_pb2.CreateRunRequest)[0].ref == "topic/fast"


def test_that_nothing_differs_is_said_plainly(server: ScriptedServer, ffctl: Ffctl) -> None:
    found = pair()
    found.identical = True
    differ(server, found)
    ended = ffctl("runs", "diff", SHORT_ID, OTHER_SHORT_ID)
    assert ended.code == 0
    assert ended.out.decode().splitlines() == [
        "          099a8057                5e6f7a8b",
        "Pipeline  etl                     etl",
        "Queued    2025-11-23 12:13:20     2025-11-23 12:13:20",
        "State     SUCCEEDED  exit code 0  FAILED  exit code 3",
        "",
        "Nothing differs: same code, parameters, limits, packages, agent, image, Python, uv and secrets.",
    ]


def test_what_differs_stands_side_by_side_and_the_code_s_difference_below(server: ScriptedServer, ffctl: Ffctl) -> None:
    differ(server, different())
    text = ffctl("runs", "diff", SHORT_ID, OTHER_SHORT_ID).out.decode()
    rows = [" ".join(line.split()) for line in text.splitlines()]
    for row in (
        "Commit a1a1a1a1a1a1 Round down b2b2b2b2b2b2 Round up",
        "Code sha256:aaaaaaaaaaaa… sha256:bbbbbbbbbbbb…",
        "Package numpy 2.1.0 2.2.0",
        "Package pandas – 2.2.3",
        "Parameter DAY one value another",
        "Parameter NEW – set",
        "Parameter OLD set –",
        "Default REGION one value another",
        "Memory limit 512 MiB 1 GiB",
        "Soft CPU limit none 0.8 cores",
        "Timeout none 1 min 30 s",
        "Agent worker-1 worker-2",
        "Secret TOKEN – version 3",
        "from_a_later_server x y",
        "Same image, Python and uv.",
    ):
        assert row in rows
    assert text.endswith("\n\n" + CODE)


def test_what_could_not_be_compared_is_not_called_the_same(server: ScriptedServer, ffctl: Ffctl) -> None:
    found = pair()
    found.identical = True
    found.b.ClearField("provenance")
    found.notes.append("run x has no environment yet")
    differ(server, found)
    ended = ffctl("runs", "diff", SHORT_ID, OTHER_SHORT_ID)
    assert ended.out.decode().splitlines()[-1] == "Nothing differs: same code, parameters and limits."
    assert ended.err == "note: run x has no environment yet\n"


def test_differences_as_json_are_the_api_s_own(server: ScriptedServer, ffctl: Ffctl) -> None:
    differ(server, different())
    shown = json.loads(ffctl("runs", "diff", SHORT_ID, OTHER_SHORT_ID, "-o", "json").out)
    assert shown["identical"] is False
    assert shown["parameters"][0] == {"name": "DAY", "change": "VARIABLE_CHANGE_VALUE"}
    assert shown["code"] == {"unified_diff": CODE}


def test_code_in_a_terminal_is_coloured_and_can_not_steer_it(
    server: ScriptedServer, spawn: Callable[..., subprocess.Popen[bytes]], environment: dict[str, str]
) -> None:
    environment |= {"TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    found = different()
    found.code.unified_diff += "+\x1b]0;title\x07\n"
    differ(server, found)
    terminal = Terminal(spawn, "runs", "diff", SHORT_ID, OTHER_SHORT_ID)
    assert terminal.end() == 0
    assert '\x1b[32m+print("two")' in terminal.everything
    assert '\x1b[31m-print("one")' in terminal.everything
    assert "\x1b]0" not in terminal.everything


def shown(server: ScriptedServer, ffctl: Ffctl, run: runs_pb2.Run) -> str:
    server.answers["GetRun"] = lambda request, context: runs_pb2.GetRunResponse(run=run)
    return ffctl("runs", "show", SHORT_ID).out.decode()


def test_a_run_shows_what_exactly_it_ran(server: ScriptedServer, ffctl: Ffctl) -> None:
    run = run_of(
        "SUCCEEDED",
        commit="a1" * 20,
        commit_author="Ada <ada@example.org>",
        commit_subject="Round down",
        ref="topic",
        tree="7e" * 20,
        bundle_digest="sha256:" + "a" * 64,
        environment_names=["DAY"],
        default_environment_names=["REGION"],
        provenance=provenance("numpy==2.1.0", "pandas==2.2.3"),
        limits=limits_pb2.Limits(cpu_hard_milli_cores=1000, memory_hard_bytes=2**29),
    )
    run.provenance.secret_versions["TOKEN"] = 3
    rows = [" ".join(line.split()) for line in shown(server, ffctl, run).splitlines()]
    for row in (
        f"Commit {'a1' * 20} (topic)",
        "Round down (Ada <ada@example.org>)",
        f"Code tree {'7e' * 20}, bundle sha256:aaaaaaaaaaaa…",
        "Parameters DAY",
        "Defaults REGION",
        "Secrets TOKEN (version 3)",
        "Python 3.11, uv 0.9.1",
        "Image runner:1 sha256:cdcdcdcdcdcd…",
        "Packages numpy==2.1.0, pandas==2.2.3",
    ):
        assert row in rows


@pytest.mark.parametrize(
    ("rerun", "text"),
    [
        (runs_pb2.Rerun(), f"{OTHER_SHORT_ID}: its code, parameters and packages"),
        (runs_pb2.Rerun(packages=["numpy==2.1.0"]), f"{OTHER_SHORT_ID}: its code, parameters and packages"),
        (
            runs_pb2.Rerun(packages=["numpy==2.0.0"]),
            f"its code and parameters, but other packages (ffctl runs diff {OTHER_SHORT_ID} {SHORT_ID})",
        ),
        (runs_pb2.Rerun(latest=True), f"{OTHER_SHORT_ID}: its parameters, with the newest code"),
    ],
    ids=["no packages", "the same", "others", "latest"],
)
def test_a_run_that_repeats_another_says_what_it_has_of_it(
    server: ScriptedServer, ffctl: Ffctl, rerun: runs_pb2.Rerun, text: str
) -> None:
    rerun.run_id = OTHER_ID
    run = run_of("SUCCEEDED", rerun=rerun, provenance=provenance("numpy==2.1.0"))
    assert run.id == RUN_ID
    assert text in shown(server, ffctl, run)
