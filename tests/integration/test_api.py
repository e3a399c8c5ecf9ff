"""The public API of a real control plane, spoken to as any gRPC client would. No agent: what needs none."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fastflow.v1 import (
    agents_pb2,
    agents_pb2_grpc,
    logs_pb2,
    logs_pb2_grpc,
    pipelines_pb2,
    pipelines_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    secrets_pb2,
    secrets_pb2_grpc,
)
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.cluster import Cluster

SECONDS = 60.0
"""No call of these tests takes longer, unless something hangs."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane without agents, and the pipelines "etl" and "report" and an invalid one."""
    folder: Path = tmp_path_factory.mktemp("api")
    with Cluster(folder / "cluster", "process") as cluster:
        cluster.add_pipeline("etl", "print(1)", pipeline={"mem_hard_limit": "64m", "description": "Loads orders"})
        cluster.add_pipeline("report", "print(2)", pipeline={"mem_hard_limit": "64g"})
        cluster.add_pipeline("wrong", "print(3)", pipeline={"mem_hard_limit": "12 apples", "cpu_hard_limit": -1})
        cluster.controlplane.start()
        with grpc.insecure_channel(cluster.server) as channel:
            grpc.channel_ready_future(channel).result(SECONDS)
        yield cluster


@pytest.fixture
def channel(server: Cluster) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.server) as opened:
        yield opened


@pytest.fixture
def runs(channel: grpc.Channel) -> runs_pb2_grpc.RunServiceStub:
    return runs_pb2_grpc.RunServiceStub(channel)


def create(runs: runs_pb2_grpc.RunServiceStub, pipeline: str = "etl", **fields: Any) -> runs_pb2.Run:
    return runs.CreateRun(runs_pb2.CreateRunRequest(pipeline=pipeline, **fields), timeout=SECONDS).run


def refusal(method: Any, request: Any) -> tuple[str, str, str, list[str]]:
    """Makes a call that must fail; returns code, message, reason and the fields that are wrong."""
    with pytest.raises(grpc.RpcError) as caught:
        _complete(method(request, timeout=SECONDS))
    status = rpc_status.from_call(caught.value)
    assert status is not None, caught.value
    (information,) = _unpacked(status, error_details_pb2.ErrorInfo)
    assert information.domain == "fastflow"
    fields = [
        violation.field
        for bad_request in _unpacked(status, error_details_pb2.BadRequest)
        for violation in bad_request.field_violations
    ]
    return caught.value.code().name, status.message, information.reason, fields


def _complete(answer: Any) -> None:
    if hasattr(answer, "__next__"):
        list(answer)  # a stream fails when it is read


def _unpacked(status: Any, kind: Any) -> list[Any]:
    found = []
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    return found


class TestRuns:
    def test_a_new_run_is_queued_with_all_that_is_pinned(self, runs: runs_pb2_grpc.RunServiceStub) -> None:
        run = create(runs, environment={"DAY": "monday"}, request_id="pinned")
        assert len(run.id) == 36
        assert run.state == runs_pb2.RUN_STATE_QUEUED
        assert run.limits.memory_hard_bytes == 64 * 2**20
        assert list(run.environment_names) == ["DAY"]
        assert "monday" not in str(run)
        assert run.bundle_digest.startswith("sha256:")
        assert run.trigger == "api"

    def test_a_run_that_can_not_be_placed_says_why_at_once(self, runs: runs_pb2_grpc.RunServiceStub) -> None:
        assert "no agent is connected" in create(runs, "report").message

    def test_a_short_id_finds_the_run(self, runs: runs_pb2_grpc.RunServiceStub) -> None:
        run = create(runs)
        assert runs.GetRun(runs_pb2.GetRunRequest(id=run.id[-8:]), timeout=SECONDS).run.id == run.id

    def test_the_same_request_id_gives_the_same_run_and_with_another_body_none(
        self, runs: runs_pb2_grpc.RunServiceStub
    ) -> None:
        first = create(runs, request_id="twice", environment={"A": "1"})
        assert create(runs, request_id="twice", environment={"A": "1"}).id == first.id
        other = runs_pb2.CreateRunRequest(pipeline="etl", request_id="twice", environment={"A": "2"})
        code, message, _, _ = refusal(runs.CreateRun, other)
        assert code == "ALREADY_EXISTS"
        assert '"twice"' in message

    def test_lists_are_paged_newest_first_without_gaps_or_repeats(self, runs: runs_pb2_grpc.RunServiceStub) -> None:
        created = [create(runs).id for _ in range(5)]
        seen: list[str] = []
        token = ""
        while len(seen) < 5:
            request = runs_pb2.ListRunsRequest(page_size=2, page_token=token, pipeline="etl")
            page = runs.ListRuns(request, timeout=SECONDS)
            assert len(page.runs) == 2
            # A run that comes meanwhile moves no later page.
            create(runs)
            seen += [run.id for run in page.runs]
            token = page.next_page_token
        assert seen[:5] == created[::-1]

    def test_a_list_is_filtered_by_state(self, runs: runs_pb2_grpc.RunServiceStub) -> None:
        run = create(runs)
        runs.CancelRun(runs_pb2.CancelRunRequest(id=run.id), timeout=SECONDS)
        request = runs_pb2.ListRunsRequest(states=[runs_pb2.RUN_STATE_CANCELLED])
        page = runs.ListRuns(request, timeout=SECONDS)
        assert run.id in [listed.id for listed in page.runs]
        assert {listed.state for listed in page.runs} == {runs_pb2.RUN_STATE_CANCELLED}

    def test_a_watch_ends_after_the_terminal_state(self, runs: runs_pb2_grpc.RunServiceStub) -> None:
        run = create(runs)
        watch = runs.WatchRun(runs_pb2.WatchRunRequest(id=run.id), timeout=SECONDS)
        assert next(watch).run.state == runs_pb2.RUN_STATE_QUEUED
        runs.CancelRun(runs_pb2.CancelRunRequest(id=run.id), timeout=SECONDS)
        last = list(watch)[-1].run
        assert last.state == runs_pb2.RUN_STATE_CANCELLED
        assert last.reason == runs_pb2.REASON_CANCEL_REQUESTED
        assert last.HasField("end_time")

    def test_a_cancel_may_be_repeated(self, runs: runs_pb2_grpc.RunServiceStub) -> None:
        run = create(runs)
        first = runs.CancelRun(runs_pb2.CancelRunRequest(id=run.id, request_id="c"), timeout=SECONDS).run
        second = runs.CancelRun(runs_pb2.CancelRunRequest(id=run.id, request_id="c"), timeout=SECONDS).run
        assert (first.state, first.end_time) == (second.state, second.end_time)

    @pytest.mark.parametrize(
        ("request_fields", "code", "field", "text"),
        [
            ({"pipeline": ""}, "INVALID_ARGUMENT", "pipeline", "name the pipeline"),
            ({"pipeline": "elt"}, "NOT_FOUND", "", 'did you mean "etl"'),
            ({"pipeline": "wrong"}, "INVALID_ARGUMENT", "pipeline", "cpu_hard_limit: -1"),
            ({"pipeline": "etl", "environment": {"1A": "x"}}, "INVALID_ARGUMENT", "environment[1A]", "1A"),
            ({"pipeline": "etl", "environment": {"PATH": "x"}}, "INVALID_ARGUMENT", "environment[PATH]", "PATH"),
            (
                {"pipeline": "etl", "environment": {"FASTFLOW_X": "x"}},
                "INVALID_ARGUMENT",
                "environment[FASTFLOW_X]",
                "FASTFLOW_",
            ),
            ({"pipeline": "etl", "priority": 5000}, "INVALID_ARGUMENT", "priority", "5000"),
            ({"pipeline": "etl", "ref": "main"}, "INVALID_ARGUMENT", "ref", "main"),
        ],
    )
    def test_a_bad_request_is_refused_by_name_and_rule(
        self, runs: runs_pb2_grpc.RunServiceStub, request_fields: dict[str, Any], code: str, field: str, text: str
    ) -> None:
        refused, message, _, fields = refusal(runs.CreateRun, runs_pb2.CreateRunRequest(**request_fields))
        assert refused == code
        assert text in message
        assert not field or field in fields

    @pytest.mark.parametrize(
        ("request_fields", "field"),
        [
            ({"page_size": -1}, "page_size"),
            ({"page_size": 1001}, "page_size"),
            ({"page_token": "%%%"}, "page_token"),
            ({"states": [0]}, "states"),
            ({"states": [99]}, "states"),
        ],
    )
    def test_a_bad_list_request_is_refused(
        self, runs: runs_pb2_grpc.RunServiceStub, request_fields: dict[str, Any], field: str
    ) -> None:
        code, _, _, fields = refusal(runs.ListRuns, runs_pb2.ListRunsRequest(**request_fields))
        assert (code, fields) == ("INVALID_ARGUMENT", [field])

    def test_unknown_and_malformed_ids_are_told_apart(self, runs: runs_pb2_grpc.RunServiceStub) -> None:
        for method, kind in (
            (runs.GetRun, runs_pb2.GetRunRequest),
            (runs.CancelRun, runs_pb2.CancelRunRequest),
            (runs.RerunRun, runs_pb2.RerunRunRequest),
            (runs.WatchRun, runs_pb2.WatchRunRequest),
        ):
            code, message, _, _ = refusal(method, kind(id="deadbeef"))
            assert (code, "deadbeef" in message) == ("NOT_FOUND", True)
            assert refusal(method, kind(id="dead"))[0] == "INVALID_ARGUMENT"

    def test_a_run_is_repeated_once_per_request_and_does_not_differ(self, runs: runs_pb2_grpc.RunServiceStub) -> None:
        first = create(runs, environment={"DAY": "value-nobody-may-see"})
        request = runs_pb2.RerunRunRequest(id=first.id[-8:], request_id=f"again {first.id}")
        again = runs.RerunRun(request, timeout=SECONDS).run
        assert runs.RerunRun(request, timeout=SECONDS).run.id == again.id != first.id
        assert (again.rerun.run_id, again.bundle_digest) == (first.id, first.bundle_digest)
        assert list(again.environment_names) == ["DAY"]
        found = runs.DiffRuns(runs_pb2.DiffRunsRequest(a=first.id, b=again.id), timeout=SECONDS)
        assert (found.a.id, found.b.id, found.identical) == (first.id, again.id, True)
        assert len(found.notes) == 2
        assert "nobody" not in str(found)
        request.latest = True
        assert refusal(runs.RerunRun, request)[0] == "ALREADY_EXISTS"

    def test_a_run_that_can_not_be_compared_is_named_by_its_field(self, runs: runs_pb2_grpc.RunServiceStub) -> None:
        run = create(runs).id
        code, message, _, _ = refusal(runs.DiffRuns, runs_pb2.DiffRunsRequest(a=run, b="deadbeef"))
        assert (code, "deadbeef" in message) == ("NOT_FOUND", True)
        code, _, _, fields = refusal(runs.DiffRuns, runs_pb2.DiffRunsRequest(a=run, b="dead"))
        assert (code, fields) == ("INVALID_ARGUMENT", ["b"])


class TestLogs:
    def test_a_run_without_attempt_has_an_empty_log(
        self, channel: grpc.Channel, runs: runs_pb2_grpc.RunServiceStub
    ) -> None:
        request = logs_pb2.ReadLogRequest(run_id=create(runs).id[-8:])
        pieces = list(logs_pb2_grpc.LogServiceStub(channel).ReadLog(request, timeout=SECONDS))
        assert b"".join(piece.data for piece in pieces) == b""

    def test_a_follower_of_a_run_that_never_starts_ends_with_it(
        self, channel: grpc.Channel, runs: runs_pb2_grpc.RunServiceStub
    ) -> None:
        run = create(runs)
        following = logs_pb2_grpc.LogServiceStub(channel).ReadLog(
            logs_pb2.ReadLogRequest(run_id=run.id, follow=True), timeout=SECONDS
        )
        runs.CancelRun(runs_pb2.CancelRunRequest(id=run.id), timeout=SECONDS)
        assert [piece.data for piece in following] == [b""]

    @pytest.mark.parametrize(
        ("request_fields", "code", "field"),
        [
            ({"offset": -1}, "INVALID_ARGUMENT", "offset"),
            ({"attempt": -1}, "INVALID_ARGUMENT", "attempt"),
            ({"tail_lines": -1}, "INVALID_ARGUMENT", "tail_lines"),
            ({"tail_lines": 3, "offset": 3}, "INVALID_ARGUMENT", "tail_lines"),
            ({"attempt": 7}, "NOT_FOUND", ""),
        ],
    )
    def test_a_bad_position_is_refused(
        self,
        channel: grpc.Channel,
        runs: runs_pb2_grpc.RunServiceStub,
        request_fields: dict[str, int],
        code: str,
        field: str,
    ) -> None:
        request = logs_pb2.ReadLogRequest(run_id=create(runs).id, **request_fields)
        refused, _, _, fields = refusal(logs_pb2_grpc.LogServiceStub(channel).ReadLog, request)
        assert (refused, fields) == (code, [field] if field else [])


class TestPipelines:
    def test_pipelines_are_listed_by_name_page_by_page(self, channel: grpc.Channel) -> None:
        stub = pipelines_pb2_grpc.PipelineServiceStub(channel)
        first = stub.ListPipelines(pipelines_pb2.ListPipelinesRequest(page_size=2), timeout=SECONDS)
        rest = stub.ListPipelines(
            pipelines_pb2.ListPipelinesRequest(page_size=2, page_token=first.next_page_token), timeout=SECONDS
        )
        assert [pipeline.name for pipeline in (*first.pipelines, *rest.pipelines)] == ["etl", "report", "wrong"]
        assert rest.next_page_token == ""

    def test_pipelines_too_large_for_one_answer_are_listed_on_several_pages(
        self, channel: grpc.Channel, server: Cluster
    ) -> None:
        stub = pipelines_pb2_grpc.PipelineServiceStub(channel)
        long = {f"V{number}": "x" * 30_000 for number in range(8)}
        names = [f"long-{number:02}" for number in range(40)]
        folders = [server.add_pipeline(name, "print(1)", pipeline={"default_env": long}) for name in names]
        listed: list[str] = []
        token = "unused"
        while token:
            request = pipelines_pb2.ListPipelinesRequest(page_size=1000, page_token=token.removeprefix("unused"))
            page = stub.ListPipelines(request, timeout=SECONDS)
            listed += [pipeline.name for pipeline in page.pipelines]
            token = page.next_page_token
        for folder in folders:
            shutil.rmtree(folder)
        assert listed == ["etl", *names, "report", "wrong"]

    def test_requirements_nested_too_deeply_are_one_pipeline_s_trouble_alone(
        self, channel: grpc.Channel, server: Cluster
    ) -> None:
        stub = pipelines_pb2_grpc.PipelineServiceStub(channel)
        folder = server.add_pipeline("deep", "print(1)", requirements="a; " + "(" * 1000 + "\n")
        pipeline = stub.GetPipeline(pipelines_pb2.GetPipelineRequest(name="deep"), timeout=SECONDS).pipeline
        shutil.rmtree(folder)
        assert pipeline.state == pipelines_pb2.PIPELINE_STATE_INVALID
        assert [problem.file for problem in pipeline.problems] == ["requirements.txt"]

    def test_an_invalid_pipeline_is_listed_with_every_problem(self, channel: grpc.Channel) -> None:
        stub = pipelines_pb2_grpc.PipelineServiceStub(channel)
        pipeline = stub.GetPipeline(pipelines_pb2.GetPipelineRequest(name="wrong"), timeout=SECONDS).pipeline
        assert pipeline.state == pipelines_pb2.PIPELINE_STATE_INVALID
        assert sorted(problem.field for problem in pipeline.problems) == ["cpu_hard_limit", "mem_hard_limit"]
        assert not pipeline.HasField("limits")

    def test_a_folder_that_appears_is_a_pipeline_at_once(self, channel: grpc.Channel, server: Cluster) -> None:
        stub = pipelines_pb2_grpc.PipelineServiceStub(channel)
        server.add_pipeline("zz_new", "print(4)")
        pipeline = stub.GetPipeline(pipelines_pb2.GetPipelineRequest(name="zz_new"), timeout=SECONDS).pipeline
        assert pipeline.state == pipelines_pb2.PIPELINE_STATE_READY

    def test_an_unknown_pipeline_is_not_found_with_the_nearest_names(self, channel: grpc.Channel) -> None:
        stub = pipelines_pb2_grpc.PipelineServiceStub(channel)
        code, message, _, _ = refusal(stub.GetPipeline, pipelines_pb2.GetPipelineRequest(name="reprot"))
        assert (code, '"report"' in message) == ("NOT_FOUND", True)


class TestSecrets:
    def test_a_secret_is_set_listed_and_deleted_without_its_value(self, channel: grpc.Channel) -> None:
        stub = secrets_pb2_grpc.SecretServiceStub(channel)
        request = secrets_pb2.SetSecretRequest(
            name="API_TOKEN", pipelines=["etl", "report"], value=b"open-sesame", request_id="s1"
        )
        stored = stub.SetSecret(request, timeout=SECONDS)
        assert [(secret.pipeline, secret.masked) for secret in stored.secrets] == [("etl", True), ("report", True)]
        repeated = stub.SetSecret(request, timeout=SECONDS)
        assert [secret.version for secret in repeated.secrets] == [secret.version for secret in stored.secrets]
        listed = stub.ListSecrets(secrets_pb2.ListSecretsRequest(), timeout=SECONDS)
        assert [(secret.name, secret.pipeline) for secret in listed.secrets] == [
            ("API_TOKEN", "etl"),
            ("API_TOKEN", "report"),
        ]
        assert "sesame" not in str(listed)
        stub.DeleteSecret(
            secrets_pb2.DeleteSecretRequest(name="API_TOKEN", pipelines=["etl", "report"]), timeout=SECONDS
        )
        assert not stub.ListSecrets(secrets_pb2.ListSecretsRequest(), timeout=SECONDS).secrets

    def test_a_bad_secret_is_refused_without_repeating_its_value(self, channel: grpc.Channel) -> None:
        stub = secrets_pb2_grpc.SecretServiceStub(channel)
        request = secrets_pb2.SetSecretRequest(name="1BAD", value=b"open-sesame")
        code, message, _, fields = refusal(stub.SetSecret, request)
        assert (code, sorted(fields)) == ("INVALID_ARGUMENT", ["name", "pipelines"])
        assert "sesame" not in message

    def test_an_unknown_secret_is_not_found(self, channel: grpc.Channel) -> None:
        stub = secrets_pb2_grpc.SecretServiceStub(channel)
        assert refusal(stub.DeleteSecret, secrets_pb2.DeleteSecretRequest(name="NOBODY"))[0] == "NOT_FOUND"


class TestAgents:
    def test_without_agents_the_list_is_empty_and_a_name_not_found(self, channel: grpc.Channel) -> None:
        stub = agents_pb2_grpc.AgentServiceStub(channel)
        assert not stub.ListAgents(agents_pb2.ListAgentsRequest(), timeout=SECONDS).agents
        code, message, _, _ = refusal(stub.GetAgent, agents_pb2.GetAgentRequest(name="worker-1"))
        assert (code, "worker-1" in message) == ("NOT_FOUND", True)
