"""Variables that look like one of our programs' and are none."""

import pytest
from fastflow.variables import SETTINGS, without_effect
from fastflow_agent.settings import AgentSettings
from fastflow_controlplane.settings import ControlPlaneSettings

ENDING = "is no setting of Fast-Flow and has no effect"


def test_the_settings_are_those_of_control_plane_and_agent() -> None:
    assert {
        name.upper() for settings in (AgentSettings, ControlPlaneSettings) for name in settings.model_fields
    } == SETTINGS


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FASTFLOW_LISTN", "LISTEN"),
        ("FASTFLOW_DATADIR", "DATA_DIR"),
        ("fastflow_sever", "SERVER"),
        ("FASTFLOW_AGENTNAME", "AGENT_NAME"),
        ("FASTFLOW_CONFG", "CONFIG"),
    ],
)
def test_a_mistyped_variable_is_told_with_the_nearest_that_there_is(name: str, meant: str) -> None:
    (sentence,) = without_effect(["PATH", name])
    assert sentence == f"the environment variable {name} {ENDING}: did you mean FASTFLOW_{meant}?"


def test_one_that_is_near_to_none_is_told_all_the_same() -> None:
    assert without_effect(["FASTFLOW_XYZZY"]) == [f"the environment variable FASTFLOW_XYZZY {ENDING}"]


def test_what_any_of_our_programs_reads_or_a_run_finds_is_no_mistake() -> None:
    ours = ["LISTEN", "SLOTS", "SERVER", "TOKEN", "CONFIG", "LOCAL_CACHE", "FAILPOINTS", "REGISTRY", "UV", "HOME"]
    assert without_effect([*(f"FASTFLOW_{name}" for name in ours), "fastflow_listen", "XFASTFLOW_LISTN"]) == []
