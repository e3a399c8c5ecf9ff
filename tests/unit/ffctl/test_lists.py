"""Lists and shows: tables that answer the next question, and their JSON twins."""

import json
import re
from typing import Any

import pytest
from fastflow.v1 import agents_pb2, limits_pb2, logs_pb2, pipelines_pb2, runs_pb2, secrets_pb2

from .conftest import RUN_ID, SHORT_ID, Ffctl, ScriptedServer, refuse, run_of

GIB = 2**30
MIB = 2**20


def oom_run() -> runs_pb2.Run:
    run = run_of(
        "FAILED",
        reason=runs_pb2.REASON_OOM_KILLED,
        exit_code=137,
        message="The container went over its hard memory limit. Raise mem_hard_limit, or use less memory.",
        attempt=1,
        limits=limits_pb2.Limits(cpu_hard_milli_cores=500, memory_hard_bytes=512 * MIB, memory_soft_bytes=400 * MIB),
        environment_names=["DAY"],
        bundle_digest="sha256:" + "ab" * 32,
    )
    run.start_time.FromSeconds(1_763_900_002)
    run.end_time.FromSeconds(1_763_900_065)
    attempt = run.attempts.add(number=1, agent="worker-1", log_bytes=2048, log_sealed=True)
    attempt.usage.peak_memory_bytes = 511 * MIB
    attempt.usage.cpu_usec = 12_340_000
    attempt.usage.throttled_usec = 1_500_000
    attempt.out_of_memory.limit_bytes = 512 * MIB
    attempt.out_of_memory.peak_bytes = 512 * MIB
    attempt.out_of_memory.process = "python3"
    attempt.out_of_memory.evidence = "memory.events: oom_group_kill 1"
    warning = attempt.warnings.add(
        kind=runs_pb2.SOFT_LIMIT_KIND_MEMORY, limit=400 * MIB, peak=480 * MIB, seconds_above=6.1
    )
    warning.raise_time.FromSeconds(1_763_900_010)
    warning.clear_time.FromSeconds(1_763_900_016)
    return run


@pytest.fixture
def one_run(server: ScriptedServer) -> runs_pb2.Run:
    run = oom_run()
    server.answers |= {
        "ListRuns": lambda request, context: runs_pb2.ListRunsResponse(runs=[run]),
        "GetRun": lambda request, context: runs_pb2.GetRunResponse(run=run),
    }
    return run


def test_runs_are_listed_with_what_happened_to_them(ffctl: Ffctl, one_run: runs_pb2.Run) -> None:
    ended = ffctl("runs", "list")
    head, row = ended.out.decode().splitlines()
    assert head.split() == ["RUN", "PIPELINE", "STATE", "CREATED", "TOOK", "AGENT", "REASON"]
    assert row.split()[:3] == [SHORT_ID, "etl", "FAILED"]
    assert "1 min 3 s" in row
    assert row.endswith("worker-1  OOM_KILLED")


def test_json_is_the_protobuf_mapping_with_proto_names_and_int64_as_text(ffctl: Ffctl, one_run: runs_pb2.Run) -> None:
    listed = json.loads(ffctl("runs", "list", "-o", "json").out)
    assert list(listed) == ["runs"]
    (run,) = listed["runs"]
    assert run["id"] == RUN_ID
    assert run["state"] == "RUN_STATE_FAILED"
    assert run["limits"]["memory_hard_bytes"] == str(512 * MIB)
    assert run["attempts"][0]["log_sealed"] is True
    assert json.loads(ffctl("runs", "show", SHORT_ID, "-o", "json").out) == run


@pytest.mark.parametrize(
    ("group", "method", "answer", "advice"),
    [
        ("runs", "ListRuns", runs_pb2.ListRunsResponse(), "ffctl run NAME"),
        ("pipelines", "ListPipelines", pipelines_pb2.ListPipelinesResponse(), "folder with a main.py"),
        ("agents", "ListAgents", agents_pb2.ListAgentsResponse(), "fastflow-agent run"),
        ("secrets", "ListSecrets", secrets_pb2.ListSecretsResponse(), "ffctl secrets set"),
    ],
)
def test_an_empty_list_says_what_to_do_next_and_is_an_empty_list_in_json(
    server: ScriptedServer, ffctl: Ffctl, group: str, method: str, answer: Any, advice: str
) -> None:
    server.answers[method] = lambda request, context: answer
    ended = ffctl(group, "list")
    assert (ended.code, ended.out) == (0, b"")
    assert advice in ended.err
    assert json.loads(ffctl(group, "list", "-o", "json").out)[group] == []


def test_a_long_list_is_read_page_by_page_up_to_the_limit(server: ScriptedServer, ffctl: Ffctl) -> None:
    def page(request: runs_pb2.ListRunsRequest, _context: Any) -> runs_pb2.ListRunsResponse:
        start = int(request.page_token or 0)
        size = min(request.page_size, 10)
        runs = [runs_pb2.Run(id=f"{number:032d}", pipeline="etl") for number in range(start, min(start + size, 25))]
        return runs_pb2.ListRunsResponse(runs=runs, next_page_token=str(start + size) if start + size < 25 else "")

    server.answers["ListRuns"] = page
    assert len(json.loads(ffctl("runs", "list", "--limit", "0", "-o", "json").out)["runs"]) == 25
    limited = ffctl("runs", "list", "--limit", "12")
    assert len(limited.out.splitlines()) == 13
    assert "--limit 0" in limited.err
    assert [len(json.loads(ffctl("runs", "list", "-o", "json").out)["runs"])] == [20]


def test_filters_are_sent(server: ScriptedServer, ffctl: Ffctl, one_run: runs_pb2.Run) -> None:
    ffctl("runs", "list", "--pipeline", "etl", "--state", "failed", "--state", "LOST")
    (request,) = server.asked(runs_pb2.ListRunsRequest)
    assert request.pipeline == "etl"
    assert list(request.states) == [runs_pb2.RUN_STATE_FAILED, runs_pb2.RUN_STATE_LOST]


def test_show_tells_use_limits_warnings_and_the_verdict_on_memory(ffctl: Ffctl, one_run: runs_pb2.Run) -> None:
    text = ffctl("runs", "show", SHORT_ID).out.decode()
    assert "FAILED  OOM_KILLED  exit code 137" in text
    assert "Raise mem_hard_limit" in text
    assert "0.5 cores, 512 MiB (soft: 400 MiB)" in text
    assert "peak memory 511 MiB, CPU time 12.34 s, throttled 1.50 s" in text
    assert "limit 512 MiB (mem_hard_limit), peak 512 MiB, process python3" in text
    assert "memory.events: oom_group_kill 1" in text
    assert "12:13:30 to 12:13:36 (6.1 s)  memory above its soft limit of 400 MiB, peak 480 MiB" in text
    assert "2025-11-23 12:13:22  (waited 2.0 s)" in text
    assert "DAY" in text


def test_what_a_host_can_not_tell_is_unavailable_and_never_zero(ffctl: Ffctl, one_run: runs_pb2.Run) -> None:
    one_run.attempts[0].usage.Clear()
    assert (
        "peak memory unavailable, CPU time unavailable, throttled unavailable"
        in ffctl("runs", "show", SHORT_ID).out.decode()
    )


def test_a_queued_run_shows_per_agent_why_it_waits(server: ScriptedServer, ffctl: Ffctl) -> None:
    run = run_of("QUEUED", message="no agent has 64 GiB of memory")
    run.placements.add(agent="worker-1", explanation="has 7.6 GiB of memory, 64 GiB are needed")
    server.answers |= {
        "GetRun": lambda request, context: runs_pb2.GetRunResponse(run=run),
        "ListRuns": lambda request, context: runs_pb2.ListRunsResponse(runs=[run]),
    }
    text = ffctl("runs", "show", SHORT_ID).out.decode()
    assert "no agent has 64 GiB of memory" in text
    assert "worker-1  no    has 7.6 GiB of memory, 64 GiB are needed" in text
    assert "no agent has 64 GiB of memory" in ffctl("runs", "list").out.decode()


def test_a_run_that_is_prepared_says_where_to_see_how_far_its_packages_are(
    server: ScriptedServer, ffctl: Ffctl
) -> None:
    run = run_of("PREPARING", attempt=1, attempts=[runs_pb2.Attempt(number=1, agent="worker-1")])
    server.answers["GetRun"] = lambda request, context: runs_pb2.GetRunResponse(run=run)
    assert f"ffctl pipelines show {run.pipeline}" in ffctl("runs", "show", SHORT_ID).out.decode()


def test_cancel_says_what_became_of_the_run(server: ScriptedServer, ffctl: Ffctl) -> None:
    server.answers["CancelRun"] = lambda request, context: runs_pb2.CancelRunResponse(
        run=run_of("RUNNING", message='agent "worker-1" is out of reach')
    )
    ended = ffctl("runs", "cancel", SHORT_ID)
    assert (ended.code, ended.out) == (0, b"")
    assert f"run {SHORT_ID} is asked to stop" in ended.err
    assert 'agent "worker-1" is out of reach' in ended.err


def test_unknown_names_are_refused_with_the_nearest(server: ScriptedServer, ffctl: Ffctl) -> None:
    def get(_request: Any, context: Any) -> None:
        refuse(context, "NOT_FOUND", 'there is no pipeline "elt"; did you mean "etl"?')

    server.answers["GetPipeline"] = get
    ended = ffctl("pipelines", "show", "elt")
    assert ended.code == 4
    assert 'there is no pipeline "elt"; did you mean "etl"?' in ended.err


def test_an_invalid_pipeline_is_listed_with_its_problem(server: ScriptedServer, ffctl: Ffctl) -> None:
    pipeline = pipelines_pb2.Pipeline(name="etl", state=pipelines_pb2.PIPELINE_STATE_INVALID)
    pipeline.problems.add(
        severity=pipelines_pb2.PROBLEM_SEVERITY_ERROR,
        file="pipeline.json",
        field="mem_hard_limit",
        message='"12 apples" is no size; write for example "512m"',
    )
    server.answers |= {
        "ListPipelines": lambda request, context: pipelines_pb2.ListPipelinesResponse(pipelines=[pipeline]),
        "GetPipeline": lambda request, context: pipelines_pb2.GetPipelineResponse(pipeline=pipeline),
    }
    for arguments in (["pipelines", "list"], ["pipelines", "show", "etl"]):
        text = ffctl(*arguments).out.decode()
        assert "INVALID" in text
        assert 'pipeline.json: mem_hard_limit: "12 apples" is no size; write for example "512m"' in text


def test_agents_show_capacity_reserved_and_conditions(server: ScriptedServer, ffctl: Ffctl) -> None:
    agent = agents_pb2.Agent(
        name="worker-1",
        state=agents_pb2.AGENT_STATE_ACTIVE,
        capacity=agents_pb2.Capacity(cpu_milli_cores=2000, memory_bytes=8 * GIB),
        reserved=agents_pb2.Capacity(cpu_milli_cores=500, memory_bytes=GIB // 2),
        runtime="docker",
        cgroup="v2",
    )
    agent.conditions.add(type="DiskFull", message="less than 1 GiB free on /var", blocks_placement=True)
    agent.attempts.add(run_id=RUN_ID, attempt=1, pipeline="etl")
    server.answers |= {
        "ListAgents": lambda request, context: agents_pb2.ListAgentsResponse(agents=[agent]),
        "GetAgent": lambda request, context: agents_pb2.GetAgentResponse(agent=agent),
    }
    row = ffctl("agents", "list").out.decode().splitlines()[1]
    assert "0.5/2" in row
    assert "0.5/8 GiB" in row
    assert row.endswith("DiskFull: less than 1 GiB free on /var")
    text = ffctl("agents", "show", "worker-1").out.decode()
    assert "2 cores, 8 GiB" in text
    assert "0.5 cores, 512 MiB by 1 run" in text
    assert "DiskFull: less than 1 GiB free on /var; gets no runs" in text
    assert SHORT_ID in text


@pytest.mark.parametrize(
    ("state", "blocks", "effect"),
    [
        ("ACTIVE", False, "still gets runs"),
        ("ACTIVE", True, "gets no runs"),
        ("QUARANTINED", False, "is not why it gets no runs"),
        ("QUARANTINED", True, "gets no runs"),
        ("DRAINING", False, "is not why it gets no runs"),
        ("OFFLINE", False, "is not why it gets no runs"),
    ],
)
def test_only_an_agent_that_gets_runs_is_said_to_get_them_in_spite_of_a_condition(
    state: str, blocks: bool, effect: str, server: ScriptedServer, ffctl: Ffctl
) -> None:
    agent = agents_pb2.Agent(name="worker-1", state=agents_pb2.AgentState.Value(f"AGENT_STATE_{state}"))
    agent.conditions.add(type="ClockSkew", message="its clock is 3 s ahead", blocks_placement=blocks)
    server.answers["GetAgent"] = lambda request, context: agents_pb2.GetAgentResponse(agent=agent)
    text = ffctl("agents", "show", "worker-1").out.decode()
    assert f"ClockSkew: its clock is 3 s ahead; {effect}\n" in text


def test_of_an_agent_in_quarantine_it_is_told_what_the_database_does_not_know_and_what_becomes_of_it(
    server: ScriptedServer, ffctl: Ffctl
) -> None:
    agent = agents_pb2.Agent(name="worker-1", state=agents_pb2.AGENT_STATE_QUARANTINED)
    agent.connect_time.FromSeconds(1_763_900_002)
    server.answers["GetAgent"] = lambda request, context: agents_pb2.GetAgentResponse(agent=agent)
    assert "does not know" not in ffctl("agents", "show", "worker-1").out.decode()

    agent.unknown_attempts.SetInParent()
    text = ffctl("agents", "show", "worker-1").out.decode()
    assert "It had nothing when it connected (2025-11-23 12:13:22) that the database does not know." in text

    states = [
        (runs_pb2.RUN_STATE_RUNNING, runs_pb2.RUN_STATE_UNSPECIFIED),
        (runs_pb2.RUN_STATE_RUNNING, runs_pb2.RUN_STATE_QUEUED),
        (runs_pb2.RUN_STATE_SUCCEEDED, runs_pb2.RUN_STATE_QUEUED),
        (runs_pb2.RUN_STATE_UNSPECIFIED, runs_pb2.RUN_STATE_LOST),
    ]
    for there, here in states:
        agent.unknown_attempts.attempts.add(run_id=RUN_ID, attempt=2, pipeline="etl", state=there, run_state=here)
    lines = ffctl("agents", "show", "worker-1").out.decode().splitlines()
    head, *rows = [re.split(" {2,}", line) for line in lines[-5:]]
    assert head == ["RUN", "ATTEMPT", "PIPELINE", "THERE", "DATABASE", "ONCE ACCEPTED"]
    assert rows == [
        [SHORT_ID, "2", "etl", "RUNNING", "–", "stopped"],
        [SHORT_ID, "2", "etl", "RUNNING", "QUEUED", "stopped, begins again"],
        [SHORT_ID, "2", "etl", "SUCCEEDED", "QUEUED", "forgotten, begins again"],
        [SHORT_ID, "2", "etl", "–", "LOST", "stopped"],
    ]
    agent.unknown_attempts.more = True
    assert "first 4; there are more" in ffctl("agents", "show", "worker-1").out.decode()


def test_logs_print_what_there_is_and_succeed_whatever_the_run_did(
    server: ScriptedServer, ffctl: Ffctl, one_run: runs_pb2.Run
) -> None:
    def read(request: logs_pb2.ReadLogRequest, _context: Any) -> Any:
        yield logs_pb2.ReadLogResponse(offset=request.offset, data=b"\xff\x00out", next_offset=5, attempt=2)

    server.answers["ReadLog"] = read
    ended = ffctl("logs", SHORT_ID, "--attempt", "2", "--tail", "3")
    assert (ended.code, ended.out, ended.err) == (0, b"\xff\x00out", "")
    (request,) = server.asked(logs_pb2.ReadLogRequest)
    assert (request.run_id, request.attempt, request.tail_lines, request.follow) == (SHORT_ID, 2, 3, False)
    ffctl("logs", SHORT_ID, "--from", "4")
    assert server.asked(logs_pb2.ReadLogRequest)[1].offset == 4


def test_logs_in_json_are_one_object_a_line(server: ScriptedServer, ffctl: Ffctl) -> None:
    def read(_request: Any, _context: Any) -> Any:
        yield logs_pb2.ReadLogResponse(offset=0, data=b"a", next_offset=1, attempt=1)
        yield logs_pb2.ReadLogResponse(offset=1, data=b"b", next_offset=2, attempt=1, sealed=True)

    server.answers["ReadLog"] = read
    lines = [json.loads(line) for line in ffctl("logs", SHORT_ID, "-o", "json").out.splitlines()]
    assert [(line["offset"], line["data"], line["next_offset"], line["sealed"]) for line in lines] == [
        ("0", "YQ==", "1", False),
        ("1", "Yg==", "2", True),
    ]


def test_logs_of_a_run_without_output_say_why(server: ScriptedServer, ffctl: Ffctl) -> None:
    server.answers |= {
        "ReadLog": lambda request, context: iter(()),
        "GetRun": lambda request, context: runs_pb2.GetRunResponse(run=run_of("QUEUED", message="no agent is there")),
    }
    ended = ffctl("logs", SHORT_ID)
    assert (ended.code, ended.out) == (0, b"")
    assert f"no output yet: run {SHORT_ID} is queued: no agent is there" in ended.err


def test_tail_and_from_exclude_each_other(ffctl: Ffctl) -> None:
    assert ffctl("logs", SHORT_ID, "--tail", "3", "--from", "4").code == 2


UNSEEN = "\x1b[2J\x07\x9b\u061c\u200e\u200f\u202a\u202e\u2066\u2069\u200b\ufeff"
SEEN = "[red]Größe 日次 \U0001f468\u200d\U0001f469 می\u200cخواهم"


def test_what_is_not_seen_but_steers_a_terminal_or_poses_as_another_text_is_not_printed(
    server: ScriptedServer, ffctl: Ffctl
) -> None:
    text = f"{SEEN}{UNSEEN}"
    pipeline = pipelines_pb2.Pipeline(
        name=f"etl{UNSEEN}", state=pipelines_pb2.PIPELINE_STATE_INVALID, description=text, path=text
    )
    pipeline.problems.add(severity=pipelines_pb2.PROBLEM_SEVERITY_ERROR, file=text, message=text)
    run = run_of("QUEUED", message=text)
    run.commit, run.commit_subject, run.commit_author = "1" * 40, text, text
    server.answers |= {
        "ListPipelines": lambda request, context: pipelines_pb2.ListPipelinesResponse(pipelines=[pipeline]),
        "GetPipeline": lambda request, context: pipelines_pb2.GetPipelineResponse(pipeline=pipeline),
        "GetRun": lambda request, context: runs_pb2.GetRunResponse(run=run),
        "ListRuns": lambda request, context: runs_pb2.ListRunsResponse(runs=[run]),
        "CancelRun": lambda request, context: refuse(context, "NOT_FOUND", text),
    }
    for words in (("pipelines", "list"), ("pipelines", "show", "etl"), ("runs", "show", SHORT_ID), ("runs", "list")):
        for more in ((), ("-o", "json")):
            out = ffctl(*words, *more).out.decode()
            assert SEEN in out
            assert not set(UNSEEN.removeprefix("\x1b[2J") + "\x1b") & set(out), words
    assert json.loads(ffctl("runs", "show", SHORT_ID, "-o", "json").out)["message"] == text
    assert not set(UNSEEN.removeprefix("\x1b[2J") + "\x1b") & set(ffctl("runs", "cancel", SHORT_ID).err)
