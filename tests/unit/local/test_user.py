"""Who may run a folder in a container."""

import pytest
from fastflow_agent.local.run import CanNotRun, check_user
from fastflow_agent.settings import AgentSettings


def test_containers_need_root_for_their_control_groups() -> None:
    check_user(AgentSettings(runtime="docker"), 0)
    with pytest.raises(CanNotRun, match="run it with sudo"):
        check_user(AgentSettings(runtime="docker"), 1000)


def test_plain_processes_need_nobody() -> None:
    check_user(AgentSettings(runtime="process"), 1000)
