"""Environment variables: which names and values are refused, and by which rule."""

import pytest
from fastflow.pipelines.environment import (
    MAX_ENVIRONMENT_BYTES,
    MAX_NAME_LENGTH,
    MAX_VALUE_BYTES,
    InvalidVariable,
    check_name,
    check_value,
    faults,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("name", ["A", "_", "_x9", "PYTHONUNBUFFERED", "my_secret", "UV_HTTP_TIMEOUT", "PATHS", "HOME"])
def test_ordinary_names_may_be_set(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "9A", "A-B", "A B", "A=B", "Ä", "A\n", "A\0", "a.b", "$X"])
def test_a_malformed_name_is_refused_with_the_pattern(name: str) -> None:
    with pytest.raises(InvalidVariable, match=r"\[A-Za-z_\]\[A-Za-z0-9_\]\*"):
        check_name(name)


@pytest.mark.parametrize("name", ["PATH", "IFS", "OPTIND", "PWD", "PPID", "ENV"])
def test_the_shells_own_variables_are_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidVariable, match=f"environment variable {name}: .* belong to the shell"):
        check_name(name)


@pytest.mark.parametrize(
    "name",
    ["FASTFLOW_", "FASTFLOW_TOKEN", "UV_CACHE_DIR", "UV_PYTHON", "UV_PYTHON_DOWNLOADS", "UV_NO_PROJECT", "UV_NO_X"],
)
def test_fast_flows_own_variables_are_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidVariable, match=f"environment variable {name}: ") as caught:
        check_name(name)
    assert caught.value.variable == name
    assert "Fast-Flow" in caught.value.rule or "python_version" in caught.value.rule


def test_a_name_is_refused_past_its_longest_length() -> None:
    check_name("A" * MAX_NAME_LENGTH)
    with pytest.raises(InvalidVariable, match="at most 255 characters"):
        check_name("A" * (MAX_NAME_LENGTH + 1))


def test_values_are_any_text_without_nul() -> None:
    check_value("A", 'it\'s "quoted"\nsecond line $HOME `id` ü 🎈')
    with pytest.raises(InvalidVariable, match="environment variable A: a value can not hold a NUL"):
        check_value("A", "topsecret\0")


def test_a_value_is_measured_in_bytes() -> None:
    check_value("A", "x" * MAX_VALUE_BYTES)
    with pytest.raises(InvalidVariable, match="65536 bytes, this one has 65538"):
        check_value("A", "ü" * (MAX_VALUE_BYTES // 2 + 1))


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InvalidVariable, match="surrogate"):
        check_value("A", "\ud800")


@pytest.mark.parametrize(
    "name",
    ["UV_INDEX", "UV_INDEX_URL", "UV_INDEX_INNER_PASSWORD", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"],
)
def test_a_package_index_is_refused_and_its_places_are_named(name: str) -> None:
    with pytest.raises(InvalidVariable, match=r"FASTFLOW_INDEX_URL.*\[\[tool\.uv\.index\]\]"):
        check_name(name)


@pytest.mark.parametrize("name", ["UV_EXCLUDE_NEWER", "UV_CONFIG_FILE", "UV_WORKING_DIR", "UV_WORKING_DIRECTORY"])
def test_what_would_break_a_prepared_environment_is_refused(name: str) -> None:
    with pytest.raises(InvalidVariable, match=f"environment variable {name}: "):
        check_name(name)


@pytest.mark.parametrize("name", ["UV_ENV_FILE", "UV_COMPILE_BYTECODE", "PIP_INDEX_URL"])
def test_what_does_not_choose_packages_is_allowed(name: str) -> None:
    check_name(name)


@given(st.text(alphabet=st.characters(min_codepoint=0x100), min_size=1))
def test_no_refusal_of_a_value_shows_it(value: str) -> None:
    with pytest.raises(InvalidVariable) as caught:
        check_value("A", value + "\0")
    assert value not in str(caught.value)


def test_all_faults_of_a_set_are_found_at_once() -> None:
    found = faults({"GOOD": "1", "PATH": "/", "9": "", "ALSO_GOOD": "2", "NUL": "\0"})
    assert [fault.variable for fault in found] == ["PATH", "9", "NUL"]


def test_a_set_that_no_program_could_start_with_is_refused() -> None:
    count = MAX_ENVIRONMENT_BYTES // MAX_VALUE_BYTES + 1
    found = faults({f"V{number}": "x" * MAX_VALUE_BYTES for number in range(count)})
    assert len(found) == 1
    assert "all variables together" in found[0].rule
