"""Metadata: every field, every refusal with file, field, value and what is allowed, all of them at once."""

import json
from typing import Any

import pytest
from fastflow.pipelines.metadata import (
    FIELDS,
    MAX_METADATA_BYTES,
    MIN_MEMORY_BYTES,
    STANDARD_LIMITS,
    UNSUPPORTED_FIELDS,
    Limits,
    Metadata,
    matches_python,
    read_metadata,
)
from fastflow.pipelines.problems import Problem, Severity, errors
from hypothesis import given
from hypothesis import strategies as st

MIB = 1024**2


def read(**fields: Any) -> Metadata:
    metadata, problems = read_metadata(json.dumps(fields).encode(), "pipeline.json", STANDARD_LIMITS)
    assert problems == []
    assert metadata is not None
    return metadata


def refused(**fields: Any) -> list[Problem]:
    return refused_text(json.dumps(fields))


def refused_text(text: str | bytes) -> list[Problem]:
    data = text if isinstance(text, bytes) else text.encode()
    metadata, problems = read_metadata(data, "pipeline.json", STANDARD_LIMITS)
    assert metadata is None, "a file with an error gives no metadata"
    assert errors(problems)
    assert {problem.file for problem in problems} == {"pipeline.json"}
    return problems


def only(problems: list[Problem]) -> Problem:
    assert len(problems) == 1, problems
    return problems[0]


def test_the_format_s_example_is_read() -> None:
    metadata = read(cpu_hard_limit=2.0, mem_hard_limit="2g", cpu_soft_limit=1.5, mem_soft_limit="1.5g")
    assert metadata.limits == Limits(2000, 2048 * MIB, 1500, 1536 * MIB)


def test_every_field_is_read() -> None:
    metadata = read(
        cpu_hard_limit=1,
        mem_hard_limit=64 * MIB,
        timeout=90.5,
        python_version="3.11",
        default_env={"GREETING": "hello", "PYTHONUNBUFFERED": "0"},
        retry_on=["lost", "lost"],
        retry_attempts=2,
        enabled=False,
        description="Says hello.\nTwice.",
        tags=["etl", "nightly", "etl"],
    )
    assert metadata == Metadata(
        limits=Limits(1000, 64 * MIB),
        timeout_seconds=90.5,
        python_version="3.11",
        default_environment={"GREETING": "hello", "PYTHONUNBUFFERED": "0"},
        retry_on=("lost",),
        retry_attempts=2,
        enabled=False,
        description="Says hello.\nTwice.",
        tags=("etl", "nightly"),
    )


def test_missing_fields_take_the_configured_defaults() -> None:
    metadata, _ = read_metadata(b"{}", "pipeline.json", Limits(250, 100 * MIB))
    assert metadata == Metadata(limits=Limits(250, 100 * MIB))


def test_a_hundredth_of_a_core_and_32_mebibytes_are_the_least() -> None:
    assert read(cpu_hard_limit=0.01, mem_hard_limit="32m").limits == Limits(10, MIN_MEMORY_BYTES)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("cpu_hard_limit", 0, "0 is below the minimum; allowed is a number of cores from 0.01"),
        ("cpu_hard_limit", 0.009, "0.009 is below the minimum"),
        ("cpu_hard_limit", -1, "-1 is below the minimum"),
        ("cpu_hard_limit", 1e12, "is too large"),
        ("cpu_hard_limit", 10**400, "is no finite number"),
        (
            "cpu_hard_limit",
            "1.0",
            '"1.0" is text; allowed is a number of cores from 0.01, such as 0.5 or 2, without quotes',
        ),
        ("cpu_hard_limit", True, "true is true or false; allowed is a number of cores"),
        ("cpu_hard_limit", None, "null is null; allowed is a number of cores"),
        ("cpu_soft_limit", None, "for none leave the field out"),
        ("mem_hard_limit", "512x", '"512x" is not a size; allowed is a number with a unit'),
        ("mem_hard_limit", "-1g", '"-1g" is not a size'),
        ("mem_hard_limit", -5, "-5 is negative"),
        ("mem_hard_limit", "31m", '"31m" is below the minimum of 32 MiB'),
        ("mem_hard_limit", 512, "512 is below the minimum of 32 MiB; a number without a unit is bytes"),
        ("mem_hard_limit", True, "true is not a size"),
        ("mem_hard_limit", None, "null is not a size"),
        ("mem_hard_limit", [], "[…] is not a size"),
        ("mem_hard_limit", "9000p", "is larger than the largest size"),
        ("mem_soft_limit", 0, "for none leave the field out"),
        ("timeout", -1, "-1 is negative; allowed is a number of seconds, 0 for none"),
        ("timeout", 1e300, "is above the largest"),
        ("timeout", "60", '"60" is text; allowed is a number of seconds, 0 for none, without quotes'),
        ("timeout", False, "false is true or false"),
        ("on_log_backlog", "wait", '"wait" is unknown; allowed is "drop" or "pause"'),
        ("on_log_backlog", True, 'true is true or false; allowed is "drop" or "pause"'),
        ("python_version", 3.11, '3.11 is a number; allowed is text such as "3.11", in quotes'),
        ("python_version", ">=3.11", '">=3.11" is not a version'),
        ("python_version", "3", '"3" is not a version'),
        ("python_version", "2.7", '"2.7" is not a version'),
        ("enabled", "yes", '"yes" is text; allowed is true or false'),
        ("enabled", 1, "1 is a number; allowed is true or false"),
        ("description", 7, "7 is a number; allowed is text"),
        ("description", "\x1b[31mred", "can not be shown"),
        ("tags", "etl", '"etl" is text; allowed is a list'),
        ("tags", ["a", ""], '"" is no tag'),
        ("tags", ["a", 3], "3 is no tag"),
        ("tags", ["x"] * 101, "allowed is a list of at most 100"),
        ("default_env", ["A"], "[…] is a list; allowed is an object of texts"),
        ("retry_on", "lost", '"lost" is text; allowed is a list of "lost"'),
        ("retry_on", ["failed"], '"failed" is nothing that can be retried; allowed is a list of "lost"'),
        ("retry_on", [["lost"]], "[…] is nothing that can be retried"),
        ("retry_attempts", 101, "101 is out of range; allowed is a whole number from 0 to 100"),
        ("retry_attempts", 1.5, "1.5 is out of range"),
        ("retry_attempts", "3", "allowed is a whole number from 0 to 100, without quotes"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(field: str, value: Any, said: str) -> None:
    problem = only(refused(**{field: value}))
    assert problem.field == field
    assert said in problem.message
    assert str(problem).startswith(f"pipeline.json: {field}: ")


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"cpu_hard_limit": 1, "cpu_soft_limit": 1.5}, "cpu_soft_limit", "1.5 is above cpu_hard_limit of 1 cores"),
        (
            {"mem_hard_limit": "64m", "mem_soft_limit": "65m"},
            "mem_soft_limit",
            '"65m" is above mem_hard_limit of 64 MiB',
        ),
        (
            {"mem_soft_limit": "2g"},
            "mem_soft_limit",
            "above the default for mem_hard_limit, which is not set, of 1 GiB",
        ),
    ],
)
def test_a_soft_limit_above_the_hard_one_is_refused(fields: dict[str, Any], field: str, said: str) -> None:
    problem = only(refused(**fields))
    assert problem.field == field
    assert said in problem.message


def test_a_soft_limit_equal_to_the_hard_one_is_allowed() -> None:
    assert read(cpu_hard_limit=1, cpu_soft_limit=1.0).limits.cpu_soft_milli_cores == 1000


def test_a_soft_limit_is_not_compared_with_a_hard_one_that_is_wrong_itself() -> None:
    assert only(refused(mem_hard_limit="1x", mem_soft_limit="8g")).field == "mem_hard_limit"


def test_a_soft_limit_above_an_assumed_default_is_only_told() -> None:
    metadata, problems = read_metadata(b'{"mem_soft_limit": "2g"}', "pipeline.json", None)
    assert metadata is not None
    assert only(problems).severity is Severity.WARNING


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("mem_limit", 'mem_soft_limit" or "mem_hard_limit'),
        ("memHardLimit", "mem_hard_limit"),
        ("CPU_HARD_LIMIT", "cpu_hard_limit"),
        ("timeouts", "timeout"),
        ("default-env", "default_env"),
    ],
)
def test_an_unknown_field_is_refused_with_the_one_that_was_meant(written: str, meant: str) -> None:
    problem = only(refused(**{written: 1}))
    assert problem.field == written
    assert f'did you mean "{meant}"?' in problem.message


def test_an_unknown_field_like_no_other_is_refused_with_all_there_are() -> None:
    assert all(field in only(refused(zzz=1)).message for field in FIELDS)


def test_fields_of_the_original_that_are_not_built_yet_are_warnings() -> None:
    data = json.dumps(dict.fromkeys(UNSUPPORTED_FIELDS, "anything")).encode()
    metadata, problems = read_metadata(data, "pipeline.json", STANDARD_LIMITS)
    assert metadata == Metadata(limits=STANDARD_LIMITS)
    assert {problem.field for problem in problems} == UNSUPPORTED_FIELDS
    assert all(p.severity is Severity.WARNING and "not supported yet" in p.message for p in problems)


def test_a_lost_run_is_retried_three_times_where_nobody_says_how_often() -> None:
    assert read(retry_on=["lost"]).retry_attempts == 3
    assert read(retry_on=[], retry_attempts=5).retry_attempts == 0


def test_retries_of_nothing_in_particular_are_told_to_have_no_effect() -> None:
    metadata, problems = read_metadata(b'{"retry_attempts": 3}', "pipeline.json", STANDARD_LIMITS)
    assert metadata == Metadata(limits=STANDARD_LIMITS)
    assert only(problems).severity is Severity.WARNING
    assert 'no effect without `"retry_on": ["lost"]`' in only(problems).message


def test_all_problems_are_found_at_once() -> None:
    fields = {"cpu_hard_limit": "x", "mem_hard_limit": "x", "timeout": "x", "tags": "x", "nonsense": 1, "schedules": []}
    assert {problem.field for problem in refused(**fields)} == set(fields)


@pytest.mark.parametrize("name", ["PATH", "FASTFLOW_X", "9A", "UV_CACHE_DIR", ""])
def test_a_refused_name_in_default_env_is_named(name: str) -> None:
    problem = only(refused(default_env={"GOOD": "1", name: "2"}))
    assert problem.field == f"default_env.{name}"
    assert "environment variable" in problem.message


@pytest.mark.parametrize("value", [1, True, None, ["x"], {"a": "b"}])
def test_values_in_default_env_are_text(value: Any) -> None:
    problem = only(refused(default_env={"PASSWORD": value}))
    assert problem.field == "default_env.PASSWORD"
    assert "put it into quotes" in problem.message


def test_no_problem_shows_a_value_of_default_env() -> None:
    problems = refused(default_env={"A": "hunter2\0", "PATH": "hunter2", "B": ["hunter2"]})
    assert len(problems) == 3
    assert not any("hunter2" in str(problem) for problem in problems)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1, column 1: Expecting value; the file is empty"),
        ('{\n  "timeout": 5,\n}', "; remove the comma before it"),
        ("{'timeout': 5}", "line 1, column 2: Expecting property name enclosed in double quotes; JSON text stands in"),
        ('{"timeout": 5} // seconds', "; JSON has no comments"),
        ('{"enabled": True}', "; JSON writes true, false and null in small letters"),
        ('{\n"timeout" 5}', "line 2, column 11: Expecting ':' delimiter"),
        ('{"description": "a\nb"}', "Invalid control character"),
        ("[]", "holds a list; metadata is an object"),
        ("null", "holds null; metadata is an object"),
        (b"\xef\xbb\xbf{}", "byte order mark of UTF-8; save the file as UTF-8 without one"),
        ('{"timeout": 5}'.encode("utf-16"), "byte order mark of UTF-16"),
        (b'{\n"description": "\xe4"}', "line 2: byte 0xe4 is not UTF-8; save the file as UTF-8"),
        ("[" * 200_000, "nested too deeply"),
        (b'{"description": "' + b"x" * MAX_METADATA_BYTES + b'"}', "metadata has at most 262144"),
    ],
)
def test_what_is_not_json_is_refused_with_the_place(text: str | bytes, said: str) -> None:
    problem = only(refused_text(text))
    assert problem.field == ""
    assert said in problem.message


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["cpu_hard_limit", "timeout", "mem_hard_limit"])
def test_numbers_that_are_not_finite_are_refused(field: str, constant: str) -> None:
    assert only(refused_text(f'{{"{field}": {constant}}}')).field == field


def test_a_number_of_many_digits_is_refused_as_any_other() -> None:
    assert only(refused_text('{"timeout": ' + "9" * 5000 + "}")).field == "timeout"


def test_a_key_written_twice_is_refused() -> None:
    assert only(refused_text('{"timeout": 1, "timeout": 2}')).field == "timeout"
    assert only(refused_text('{"default_env": {"A": "1", "A": "2"}}')).field == "default_env.A"


def test_halves_of_surrogate_pairs_are_refused_everywhere() -> None:
    text = '{"description": "\\ud800", "tags": ["\\ud800"], "default_env": {"A": "\\ud800"}, "\\ud800": 1}'
    problems = refused_text(text)
    assert len(problems) == 4
    assert all(str(problem).encode() for problem in problems)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), _json, max_size=8))
def test_any_json_gives_metadata_or_errors_that_can_be_shown(fields: dict[str, Any]) -> None:
    metadata, problems = read_metadata(json.dumps(fields).encode(), "x.json", STANDARD_LIMITS)
    assert (metadata is None) == bool(errors(problems))
    if metadata is not None:
        assert metadata.limits.cpu_hard_milli_cores >= 10
        assert metadata.limits.memory_hard_bytes >= MIN_MEMORY_BYTES
        assert metadata.timeout_seconds >= 0
    assert all(str(problem).encode() and len(str(problem)) < 1000 for problem in problems)


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ \ntf01e-.', max_size=30).map(str.encode))
def test_any_bytes_give_metadata_or_errors(data: bytes) -> None:
    metadata, problems = read_metadata(data, "x.json", STANDARD_LIMITS)
    assert (metadata is None) == bool(errors(problems))


@pytest.mark.parametrize(
    ("wanted", "version", "matches"),
    [
        ("3.11", "3.11", True),
        ("3.11", "3.11.4", True),
        ("3.11.4", "3.11.4", True),
        ("3.11.4", "3.11", False),
        ("3.1", "3.11", False),
        ("3.12", "3.11.4", False),
    ],
)
def test_a_python_version_without_its_last_part_means_any(wanted: str, version: str, matches: bool) -> None:
    assert matches_python(wanted, version) is matches
