"""The checker of the chaos suite finds what was tampered with, rule by rule, and nothing where all is well."""

import json

import pytest

from tests.chaos.evidence import Evidence
from tests.chaos.rules import RULES, no_two_attempts_of_a_run_lived_at_once, violations
from tests.chaos.script import RETRIES
from tests.unit.chaos.aftermath import COUNTS, FAILS, LOST, NEVER, OUTPUT, OVER, WAITS, Aftermath, journal, seen, usec
from tests.unit.chaos.tampering import (
    Tamper,
    again,
    all_of,
    attempt,
    both,
    calm,
    cancelled,
    events_of,
    log,
    never_began,
    not_cancelled,
    of_kind,
    one_more,
    run_row,
    state_of,
    step_again,
)


def test_nothing_is_found_where_all_is_well(aftermath: Aftermath) -> None:
    assert violations(Evidence(aftermath.folder)) == []


TAMPERED: dict[str, tuple[str, Tamper]] = {
    "run gone": (
        "every_accepted_run_ended_once",
        lambda it: it.sql("DELETE FROM runs WHERE id = ?", NEVER),
    ),
    "run not ended": ("every_accepted_run_ended_once", state_of(WAITS, "STOPPING")),
    "run without an end time": (
        "every_accepted_run_ended_once",
        lambda it: it.sql("UPDATE runs SET end_time = NULL WHERE id = ?", NEVER),
    ),
    "run unlike its attempt": ("every_run_ended_for_a_cause", state_of(COUNTS, "FAILED")),
    "attempt not ended": ("every_accepted_run_ended_once", attempt(COUNTS, "state = 'RUNNING'")),
    "attempt missing": (
        "every_accepted_run_ended_once",
        lambda it: it.sql("UPDATE runs SET attempt = 2 WHERE id = ?", COUNTS),
    ),
    "second end": (
        "every_accepted_run_ended_once",
        lambda it: it.insert_event(COUNTS, 3, "ended", {"state": "SUCCEEDED"}),
    ),
    "end that nobody reported": (
        "every_accepted_run_ended_once",
        lambda it: it.sql("DELETE FROM attempt_events WHERE run_id = ? AND sequence = 2", COUNTS),
    ),
    "end applied as another": ("every_accepted_run_ended_once", both(COUNTS, "state = 'CANCELLED'")),
    "event missing": (
        "every_accepted_run_ended_once",
        lambda it: it.sql("DELETE FROM attempt_events WHERE run_id = ? AND sequence = 1", COUNTS),
    ),
    "waiting run cancelled that nobody cancelled": ("every_run_ended_for_a_cause", not_cancelled("never")),
    "waiting run failed": ("every_run_ended_for_a_cause", state_of(NEVER, "FAILED")),
    "run that nobody cancelled cancelled after a loss": (
        "every_run_ended_for_a_cause",
        all_of(of_kind("lost", "again"), state_of(LOST, "CANCELLED")),
    ),
    "run cancelled after a loss, though it waited no more": (
        "every_run_ended_for_a_cause",
        all_of(cancelled("lost"), state_of(LOST, "CANCELLED")),
    ),
    "run failed after a loss": (
        "every_run_ended_for_a_cause",
        all_of(of_kind("lost", "again"), state_of(LOST, "FAILED")),
    ),
    "run cancelled after it was sent back, by nobody": (
        "every_run_ended_for_a_cause",
        all_of(
            state_of(FAILS, "CANCELLED"),
            attempt(FAILS, "state = 'CANCELLED', reason = 'AGENT_DRAINED', start_time = NULL"),
        ),
    ),
    "run lost that was to start again": ("every_run_ended_for_a_cause", of_kind("lost", "again")),
    "run with another reason than its attempt": ("every_run_ended_for_a_cause", run_row(FAILS, "reason = 'SIGNAL'")),
    "run with another exit code than its attempt": ("every_run_ended_for_a_cause", run_row(FAILS, "exit_code = 8")),
    "started again after an end that was its end": ("every_run_ended_for_a_cause", one_more(COUNTS)),
    "started again after a loss, though it was not to be": ("every_run_ended_for_a_cause", one_more(LOST)),
    "started again too often": (
        "every_run_ended_for_a_cause",
        all_of(of_kind("lost", "again"), *[one_more(LOST)] * (RETRIES + 1)),
    ),
    "request answered with two runs": (
        "a_request_is_one_run",
        lambda it: it.put(
            "answers.jsonl",
            (it.folder / "answers.jsonl").read_text()
            + json.dumps({"what": "ACCEPTED", "target": "counts", "run": FAILS})
            + "\n",
        ),
    ),
    "request with two runs": (
        "a_request_is_one_run",
        lambda it: it.sql("UPDATE runs SET request_id = 'counts' WHERE id = ?", FAILS),
    ),
    "request never answered": (
        "a_request_is_one_run",
        lambda it: it.replace("answers.jsonl", '"target": "never"', '"target": "other"'),
    ),
    "request remembered as another run": (
        "a_request_is_one_run",
        lambda it: it.sql("UPDATE requests SET answer_id = ? WHERE request_id = 'counts'", FAILS),
    ),
    "run nobody asked for": (
        "a_request_is_one_run",
        lambda it: it.sql("UPDATE runs SET request_id = 'nobody' WHERE id = ?", NEVER),
    ),
    "second start in the same slot": ("no_attempt_started_twice", again("counts", "a1", 500.0)),
    "start in an unknown slot": ("no_attempt_started_twice", again("counts", "zz", 500.0)),
    "start in the slot of another run": ("no_attempt_started_twice", again("counts", "a2", 500.0)),
    "start of what its agent sent back": (
        "no_attempt_started_twice",
        attempt(WAITS, "state = 'CANCELLED', reason = 'AGENT_DRAINED', start_time = NULL"),
    ),
    "start of what could not start": (
        "no_attempt_started_twice",
        attempt(FAILS, "start_time = NULL"),
    ),
    "two starts at once by time": ("no_two_attempts_of_a_run_lived_at_once", again("counts", "a1", 101.5)),
    "two starts at once by lock": (
        "no_two_attempts_of_a_run_lived_at_once",
        lambda it: it.replace("ledger/counts.a1", '"alone": true', '"alone": false'),
    ),
    "log cut off": ("every_log_equals_the_ledger", log(COUNTS, OUTPUT[:-1])),
    "log of a killed program cut off": ("every_log_equals_the_ledger", log(WAITS, OUTPUT[:-1])),
    "log with a byte more": ("every_log_equals_the_ledger", log(COUNTS, OUTPUT + b"x")),
    "log with a byte changed": ("every_log_equals_the_ledger", log(COUNTS, b"F" + OUTPUT[1:])),
    "log gone": ("every_log_equals_the_ledger", lambda it: it.log(LOST).unlink()),
    "log gone and its loss recorded": (
        "no_output_is_lost",
        all_of(log(COUNTS, b""), lambda it: it.insert_loss(COUNTS, 0, None)),
    ),
    "loss recorded and nothing missing": ("no_output_is_lost", lambda it: it.insert_loss(COUNTS, len(OUTPUT), 0)),
    "hole in a log, its loss recorded": (
        "every_log_equals_the_ledger",
        all_of(log(COUNTS, b"\0" * 5 + OUTPUT[5:]), lambda it: it.insert_loss(COUNTS, 0, 5)),
    ),
    "log not sealed": ("every_log_equals_the_ledger", attempt(COUNTS, "log_sealed = 0")),
    "log of another size than its row says": ("every_log_equals_the_ledger", attempt(COUNTS, "log_bytes = 1")),
    "log that the ledger does not know": (
        "every_log_equals_the_ledger",
        lambda it: it.put("ledger/counts.a1", ""),
    ),
    "container not known to be gone": ("reserved_capacity_is_zero", attempt(COUNTS, "released = 0")),
    "attempt not settled": ("reserved_capacity_is_zero", attempt(COUNTS, "desired = 'STOP'")),
    "container left": ("nothing_is_left_on_the_hosts", lambda it: it.host(containers=["ff-a1 Exited"])),
    "volume left": ("nothing_is_left_on_the_hosts", lambda it: it.host(volumes={"a1": "4711"})),
    "control group left": (
        "nothing_is_left_on_the_hosts",
        lambda it: it.host(cgroups={"a2": "/sys/fs/cgroup/memory/fastflow/a2"}),
    ),
    "mount left": ("nothing_is_left_on_the_hosts", lambda it: it.host(mounts=["overlay"])),
    "process left": ("nothing_is_left_on_the_hosts", lambda it: it.host(processes=["12 python"])),
    "slot folder left": ("nothing_is_left_on_the_hosts", lambda it: it.host(files=["/slots/a1"])),
    "success of a program that did not end": (
        "every_verdict_is_true",
        lambda it: it.replace("ledger/counts.a1", '"step": "end"', '"step": "else"'),
    ),
    "success with an exit code": ("every_verdict_is_true", both(COUNTS, "exit_code = 1")),
    "failure with another exit code": ("every_verdict_is_true", both(FAILS, "exit_code = 8")),
    "failure of what succeeded": (
        "every_verdict_is_true",
        both(COUNTS, "state = 'FAILED', reason = 'EXIT_CODE', exit_code = 1"),
    ),
    "failure for another reason": ("every_verdict_is_true", both(FAILS, "reason = 'CONTAINER_VANISHED'")),
    "failure to start": (
        "every_verdict_is_true",
        never_began,
    ),
    "out of memory not seen": ("every_verdict_is_true", both(OVER, "reason = 'SIGNAL'")),
    "time limit of what has none": ("every_verdict_is_true", both(WAITS, "state = 'TIMED_OUT'")),
    "cancel that nobody asked for": (
        "every_verdict_is_true",
        not_cancelled("waits"),
    ),
    "sent back by an agent that was not drained": (
        "every_verdict_is_true",
        attempt(FAILS, "state = 'CANCELLED', reason = 'AGENT_DRAINED', start_time = NULL"),
    ),
    "lost without an outage": ("every_verdict_is_true", calm),
    "lost before its agent was away for long": ("every_verdict_is_true", attempt(LOST, f"end_time = {usec(20.0)}")),
    "lost when its agent was back": ("every_verdict_is_true", attempt(LOST, f"end_time = {usec(45.0)}")),
    "lost though its agent was there meanwhile": (
        "every_verdict_is_true",
        lambda it: it.put("cluster/controlplane.log", seen(5.0) + seen(20.0)),
    ),
    "lost, and its late result not kept": (
        "every_verdict_is_true",
        lambda it: it.sql("DELETE FROM attempt_events WHERE run_id = ? AND sequence = 2", LOST),
    ),
    "lost, and its late result untrue": (
        "every_verdict_is_true",
        lambda it: it.sql(
            "UPDATE attempt_events SET fact = ? WHERE run_id = ? AND sequence = 2",
            json.dumps({"state": "FAILED", "reason": "EXIT_CODE", "exit_code": 1}),
            LOST,
        ),
    ),
    "journal of another token": ("journals_tell_the_same", attempt(COUNTS, "claim_token = 'other'")),
    "two journals of one attempt": (
        "journals_tell_the_same",
        lambda it: it.put_journal("b1", journal(COUNTS, "SUCCEEDED")),
    ),
    "released twice": ("journals_tell_the_same", step_again(COUNTS, "RELEASED", 5)),
    "steps out of order": ("journals_tell_the_same", step_again(COUNTS, "STARTED", 6)),
    "event missing in a journal": ("journals_tell_the_same", events_of(COUNTS, 1, 3)),
    "journal with another end": (
        "journals_tell_the_same",
        lambda it: it.put_journal("a1", journal(COUNTS, "FAILED")),
    ),
    "program ended with an error": (
        "no_program_failed",
        lambda it: it.put("endings.json", '{"plain-1": 1}'),
    ),
    "program did not end": (
        "no_program_failed",
        lambda it: it.put("deeds.jsonl", '{"what": "HUNG", "target": "plain-1", "monotonic": 1.0}\n'),
    ),
    "traceback in a program's log": (
        "no_program_failed",
        lambda it: it.put("cluster/plain-1.log", "Traceback (most recent call last):\n"),
    ),
}


@pytest.mark.parametrize(("name", "tamper"), TAMPERED.values(), ids=TAMPERED.keys())
def test_what_was_tampered_with_is_found(aftermath: Aftermath, name: str, tamper: Tamper) -> None:
    tamper(aftermath)
    assert name in {violation.partition(":")[0] for violation in violations(Evidence(aftermath.folder))}


@pytest.mark.parametrize(
    "tamper",
    [
        all_of(of_kind("lost", "again"), cancelled("lost"), run_row(LOST, "state = 'CANCELLED', exit_code = NULL")),
        all_of(of_kind("lost", "again"), cancelled("lost"), run_row(LOST, "cancel_time = 8")),
        all_of(of_kind("lost", "again"), one_more(LOST)),
    ],
    ids=["cancelled while it waited after a loss", "cancelled before it was lost", "started again after a loss"],
)
def test_what_may_become_of_a_run_is_no_violation(aftermath: Aftermath, tamper: Tamper) -> None:
    tamper(aftermath)
    assert violations(Evidence(aftermath.folder)) == []


def test_each_rule_is_shown_to_find_something() -> None:
    assert {name for name, _ in TAMPERED.values()} == {check.__name__ for check in RULES}


def test_a_program_killed_while_it_printed_may_have_printed_any_part_of_it(aftermath: Aftermath) -> None:
    path = aftermath.folder / "ledger/waits.a3"
    path.write_text(path.read_text().rpartition('{"monotonic"')[0])
    for printed in range(len(OUTPUT) + 1):
        log(WAITS, OUTPUT[:printed])(aftermath)
        assert violations(Evidence(aftermath.folder)) == []
    log(WAITS, OUTPUT + b"x")(aftermath)
    assert violations(Evidence(aftermath.folder))


@pytest.mark.parametrize(("key", "found"), [("lost", 0), ("counts", 2)])
def test_only_a_lost_attempt_may_live_beside_the_one_that_followed_it(
    aftermath: Aftermath, key: str, found: int
) -> None:
    again(key, "b1", 101.5)(aftermath)
    aftermath.replace(f"ledger/{key}.b1-again", '"alone": true', '"alone": false')
    assert len(list(no_two_attempts_of_a_run_lived_at_once(Evidence(aftermath.folder)))) == found
