"""What an agent is told that control plane and agent are too far apart in age."""

from fastflow.agent.v1 import gateway_pb2
from fastflow.protocol import Protocols
from fastflow_controlplane.agents.greeting import protocol_of


def hello(oldest: int, newest: int) -> gateway_pb2.Hello:
    return gateway_pb2.Hello(protocol_min=oldest, protocol_max=newest, agent_name="w", agent_version="0.2.0")


def test_the_newest_common_protocol_is_spoken() -> None:
    assert protocol_of(hello(1, 2), "0.3.0", Protocols(2, 3)) == (2, "")
    assert protocol_of(hello(1, 9), "0.3.0", Protocols(2, 3)) == (3, "")


def test_an_agent_that_is_too_old_is_to_be_upgraded() -> None:
    protocol, why = protocol_of(hello(1, 1), "0.3.0", Protocols(2, 3))
    assert protocol == 0
    assert why == (
        'agent "w" (version 0.2.0) speaks protocol 1, this control plane (version 0.3.0) protocols 2 to 3: '
        "the agent is too old; upgrade Fast-Flow on its host, its runs go on meanwhile"
    )


def test_a_control_plane_that_is_too_old_is_to_be_upgraded() -> None:
    protocol, why = protocol_of(hello(4, 5), "0.3.0", Protocols(2, 3))
    assert protocol == 0
    assert "the control plane is too old" in why


def test_an_agent_without_a_range_is_refused() -> None:
    assert protocol_of(hello(0, 0), "0.3.0")[0] == 0
    assert protocol_of(hello(2, 1), "0.3.0")[0] == 0
