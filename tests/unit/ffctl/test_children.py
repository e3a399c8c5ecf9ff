"""What `ffctl up` makes of its programs' output, and how it asks for a Docker engine."""

import socket
import threading
from pathlib import Path

import pytest
from ffctl import engine
from ffctl.children import readable


def test_a_structured_line_becomes_a_sentence_with_its_facts() -> None:
    line = (
        '{"agent": "vm", "problems": [], "attempts": 0, "event": "agent connected", "level": "info", '
        '"timestamp": "2025-11-23T20:31:05.1Z"}'
    )
    text = readable(line)
    assert text.endswith(":31:05 agent connected agent=vm  attempts=0")


def test_a_warning_is_marked() -> None:
    assert readable('{"event": "disk is full", "level": "warning"}') == "warning: disk is full"


@pytest.mark.parametrize("line", ["Traceback (most recent call last):", "{not json", '{"json": "without event"}', ""])
def test_any_other_line_stays_as_it_is(line: str) -> None:
    assert readable(line) == line


def test_an_engine_that_answers_is_there(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nOK")

        serving = threading.Thread(target=answer)
        serving.start()
        assert engine.why_not({"DOCKER_HOST": f"unix://{path}"}) == ""
        serving.join()


def test_an_engine_that_is_stuck_or_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ANSWER_S", 0.05)
    path = tmp_path / "docker.sock"
    assert engine.why_not({"DOCKER_HOST": f"unix://{path}"}) == f"there is no {path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        assert "timed out" in engine.why_not({"DOCKER_HOST": f"unix://{path}"})
    assert "Connection refused" in engine.why_not({"DOCKER_HOST": f"unix://{path}"})


def test_a_remote_engine_is_left_to_the_agent() -> None:
    assert engine.why_not({"DOCKER_HOST": "tcp://engine.example:2376"}) == ""


def test_the_agents_own_setting_goes_before_dockers() -> None:
    named = {"FASTFLOW_DOCKER_HOST": "unix:///nowhere/a.sock", "DOCKER_HOST": "tcp://engine.example:2376"}
    assert engine.why_not(named) == "there is no /nowhere/a.sock"
