"""The values runs get: whose come first, which version, and what becomes of a run whose values can not be opened."""

import base64
from pathlib import Path

import pytest

from tests.integration.agent_stream.plane import RUN, STOP, WAIT, ControlPlane, until
from tests.integration.agent_stream.scripted_agent import Journal, ScriptedAgent, state_of

ANOTHER_KEY = base64.b64encode(bytes(range(32))).decode() + "\n"


async def test_variables_come_from_the_pipeline_then_secrets_then_the_run(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    plane.pipeline("env", '{"default_env": {"A": "default", "B": "default", "C": "default"}}')
    await plane.set_secret("B", b"secret B")
    await plane.set_secret("C", b"secret C")
    stream = await agent.connect()
    run = await plane.create("env", environment={"C": "given", "D": "given"})
    spec = (await stream.assignment()).spec
    assert dict(spec.environment) == {"A": "default", "C": "given", "D": "given"}
    assert [(secret.name, secret.value) for secret in spec.secrets] == [("B", b"secret B")]
    assert list(run.environment_names) == ["C", "D"]


async def test_a_secret_that_is_set_anew_does_not_change_for_a_run_that_has_it(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    await plane.set_secret("KEY", b"first value")
    stream = await agent.connect()
    await plane.create()
    key = (await stream.assignment()).key
    await plane.set_secret("KEY", b"second value")
    await stream.close()
    again = await agent.connect([Journal(key).inventory("ASSIGNED", 0)])
    (attempt,) = again.full
    assert [(secret.value, secret.version) for secret in attempt.spec.secrets] == [(b"first value", 1)]


async def test_values_stand_in_no_file_of_the_control_plane(
    plane: ControlPlane, agent: ScriptedAgent, tmp_path: Path
) -> None:
    await plane.set_secret("KEY", b"a secret value")
    stream = await agent.connect()
    await plane.create(environment={"PARAMETER": "a given value"})
    await stream.assignment()
    await plane.stop()
    files = [file for file in (tmp_path / "data").rglob("*") if file.is_file()]
    assert any(file.name == "fastflow.db" for file in files)
    for file in files:
        content = file.read_bytes()
        assert b"a secret value" not in content, file
        assert b"a given value" not in content, file


async def says(plane: ControlPlane, run_id: str, words: str) -> bool:
    """Whether the message of a run has these words."""
    return words in (await plane.run(run_id)).message


async def test_values_that_can_no_longer_be_opened_keep_a_run_waiting_and_say_what_to_do(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    stream = await agent.connect()
    assigned = await plane.create(environment={"KEY": "value"})
    assert (await stream.assignment()).key.run_id == assigned.id
    await plane.stop()
    plane.key_file.write_text(ANOTHER_KEY)
    await plane.start()

    # The agent, which forgot it, was about to begin: it gets nothing, and the run says what is wrong.
    again = await agent.connect()
    assert again.full == []
    await until(lambda: says(plane, assigned.id, "--env"))
    run = await plane.run(assigned.id)
    assert state_of(run) == "QUEUED"
    assert "values of --env" in run.message
    assert str(plane.key_file) in run.message
    assert "cancel" in run.message
    await plane.cancel(assigned.id)
    assert state_of(await plane.run(assigned.id)) == "CANCELLED"


async def test_a_cancelled_run_whose_values_can_no_longer_be_opened_ends(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    stream = await agent.connect()
    run = await plane.create(environment={"KEY": "value"})
    await stream.assignment()
    await plane.cancel(run.id)
    await plane.stop()
    plane.key_file.write_text(ANOTHER_KEY)
    await plane.start()
    await agent.connect()
    assert state_of(await plane.run(run.id)) == "CANCELLED"


async def test_what_an_agent_has_begun_goes_on_though_its_values_can_no_longer_be_opened(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    stream = await agent.connect()
    run = await plane.create(environment={"KEY": "value"})
    journal = Journal((await stream.assignment()).key)
    await plane.stop()
    plane.key_file.write_text(ANOTHER_KEY)
    await plane.start()
    again = await agent.connect([journal.inventory("ASSIGNED", 0)])
    await again.report([journal.moved("RUNNING"), journal.ended()])
    assert state_of(await plane.run(run.id)) == "SUCCEEDED"


@pytest.mark.parametrize("what", ["key", "log"])
async def test_an_attempt_of_which_can_not_be_told_what_to_do_waits_for_that_and_is_no_orphan(
    plane: ControlPlane, agent: ScriptedAgent, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("fastflow_controlplane.agents.desired_push.MISSING_SECONDS", 0.1)
    agent.protocol = 2
    stream = await agent.connect()
    run = await plane.create(environment={"KEY": "value"})
    journal = Journal((await stream.assignment()).key)
    await stream.report([journal.moved("PREPARING"), journal.moved("RUNNING")])
    await agent.upload(journal.key, b"output", seal=False)
    await plane.stop()
    file, aside = plane.key_file if what == "key" else plane.log_file(journal.key), plane.key_file.with_name("aside")
    file.rename(aside)
    if what == "log":
        # What no user can read.
        file.mkdir()
    await plane.start()

    again = await agent.connect([journal.inventory("RUNNING", 2)])
    (word,) = again.full
    assert (word.action, word.key, word.known_seq) == (WAIT, journal.key, 2)
    assert again.orphan_grace == 300.0
    if what == "key":
        await plane.stop()
        aside.rename(file)
        await plane.start()
        (word,) = (await agent.connect([journal.inventory("RUNNING", 2)])).full
    else:
        file.rmdir()
        aside.rename(file)
        word = await again.assignment()
    assert (word.action, word.durable_log_offset, dict(word.spec.environment)) == (RUN, 6, {"KEY": "value"})
    assert state_of(await plane.run(run.id)) == "RUNNING"


async def test_an_agent_of_the_previous_protocol_gives_more_grace_to_what_it_can_not_be_told(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    stream = await agent.connect()
    assert stream.orphan_grace == 300.0
    await plane.create(environment={"KEY": "value"})
    journal = Journal((await stream.assignment()).key)
    await stream.report([journal.moved("PREPARING")])
    await plane.stop()
    plane.key_file.write_text(ANOTHER_KEY)
    await plane.start()
    again = await agent.connect([journal.inventory("PREPARING", 1)])
    assert (again.full, again.orphan_grace) == ([], 365 * 86_400.0)


async def test_a_secret_that_can_no_longer_be_opened_is_named_and_set_anew(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    await plane.set_secret("Z_OLD", b"the old value")
    old_key = plane.key_file.read_text()
    await plane.stop()
    plane.key_file.write_text(ANOTHER_KEY + old_key)
    await plane.start()
    await plane.set_secret("A_NEW", b"the new value")
    await plane.stop()
    plane.key_file.write_text(ANOTHER_KEY)
    await plane.start()
    stream = await agent.connect()
    run = await plane.create()
    await until(lambda: says(plane, run.id, "ffctl secrets set Z_OLD"))
    await plane.set_secret("Z_OLD", b"the value again")
    assert {secret.name for secret in (await stream.assignment()).spec.secrets} == {"A_NEW", "Z_OLD"}


async def test_a_stop_needs_no_values_of_the_run_itself(plane: ControlPlane, agent: ScriptedAgent) -> None:
    stream = await agent.connect()
    run = await plane.create(environment={"KEY": "value"})
    journal = Journal((await stream.assignment()).key)
    await stream.report([journal.moved("PREPARING")])
    await plane.stop()
    plane.key_file.write_text(ANOTHER_KEY)
    await plane.start()
    again = await agent.connect([journal.inventory("PREPARING", 1)])
    assert again.full == []
    await plane.cancel(run.id)
    (word,) = (await again.desired()).attempts
    assert (word.action, word.masks_unknown) == (STOP, False)


async def test_a_stop_reaches_an_attempt_whose_secrets_can_no_longer_be_opened(
    plane: ControlPlane, agent: ScriptedAgent
) -> None:
    await plane.set_secret("Z_OLD", b"the old value")
    old_key = plane.key_file.read_text()
    await plane.stop()
    plane.key_file.write_text(ANOTHER_KEY + old_key)
    await plane.start()
    await plane.set_secret("A_NEW", b"the new value")
    stream = await agent.connect()
    run = await plane.create()
    journal = Journal((await stream.assignment()).key)
    await stream.report([journal.moved("PREPARING")])
    await plane.stop()
    plane.key_file.write_text(ANOTHER_KEY)
    await plane.start()

    # An agent of the previous protocol would ship the log unmasked: it is told once the key is back.
    again = await agent.connect([journal.inventory("PREPARING", 1)])
    await plane.cancel(run.id)
    await again.close()
    assert (await agent.connect([journal.inventory("PREPARING", 1)])).full == []
    agent.protocol = 2
    newer = await agent.connect([journal.inventory("PREPARING", 1)])
    (word,) = newer.full
    assert (word.action, word.masks_unknown) == (STOP, True)
    await newer.report([journal.ended("CANCELLED")])
    assert state_of(await plane.run(run.id)) == "CANCELLED"
