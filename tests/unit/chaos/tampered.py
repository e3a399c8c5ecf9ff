"""What each rule of the chaos suite finds: names of rules → what was done to evidence in which all was well."""

import json

from tests.chaos.script import RETRIES
from tests.unit.chaos.aftermath import (
    COUNTS,
    DRAINED,
    FAILS,
    FILLS,
    KEYS,
    LOST,
    NEVER,
    OUTPUT,
    OVER,
    WAITS,
    journal,
    seen,
    slot_of,
    usec,
)
from tests.unit.chaos.tampering import (
    Tamper,
    again,
    all_of,
    attempt,
    begins,
    both,
    calm,
    cancelled,
    deleted,
    edited,
    events_of,
    left_over,
    log,
    lost_output,
    never_began,
    not_cancelled,
    noted,
    of_attempt,
    of_kind,
    one_more,
    other_journal,
    run_row,
    sql,
    state_of,
    step_again,
    written,
)

SENT_BACK = "state = 'CANCELLED', reason = 'AGENT_DRAINED', start_time = NULL"

TAMPERED: dict[str, dict[str, Tamper]] = {
    "every_accepted_run_ended_once": {
        "run gone": sql("DELETE FROM runs WHERE id = ?", NEVER),
        "run not ended": state_of(WAITS, "STOPPING"),
        "run without an end time": sql("UPDATE runs SET end_time = NULL WHERE id = ?", NEVER),
        "attempt not ended": attempt(COUNTS, "state = 'RUNNING'"),
        "attempt missing": sql("UPDATE runs SET attempt = 2 WHERE id = ?", COUNTS),
        "second end": lambda it: it.insert_event(COUNTS, 3, "ended", {"state": "SUCCEEDED"}),
        "end that nobody reported": sql("DELETE FROM attempt_events WHERE run_id = ? AND sequence = 2", COUNTS),
        "end applied as another": both(COUNTS, "state = 'CANCELLED'"),
        "event missing": sql("DELETE FROM attempt_events WHERE run_id = ? AND sequence = 1", COUNTS),
    },
    "every_run_ended_for_a_cause": {
        "run unlike its attempt": state_of(COUNTS, "FAILED"),
        "waiting run cancelled that nobody cancelled": not_cancelled("never"),
        "waiting run failed": state_of(NEVER, "FAILED"),
        "run that nobody cancelled cancelled after a loss": all_of(
            of_kind("lost", "again"), state_of(LOST, "CANCELLED")
        ),
        "run cancelled after a loss, though it waited no more": all_of(cancelled("lost"), state_of(LOST, "CANCELLED")),
        "run failed after a loss": all_of(of_kind("lost", "again"), state_of(LOST, "FAILED")),
        "run cancelled after it was sent back, by nobody": all_of(
            state_of(FAILS, "CANCELLED"),
            attempt(FAILS, SENT_BACK),
        ),
        "run lost that was to start again": of_kind("lost", "again"),
        "run with another reason than its attempt": run_row(FAILS, "reason = 'SIGNAL'"),
        "run with another exit code than its attempt": run_row(FAILS, "exit_code = 8"),
        "started again after an end that was its end": one_more(COUNTS),
        "started again after a loss, though it was not to be": one_more(LOST),
        "started again too often": all_of(of_kind("lost", "again"), *[one_more(LOST)] * (RETRIES + 1)),
    },
    "a_request_is_one_run": {
        "request answered with two runs": lambda it: it.append(
            "answers.jsonl", {"what": "ACCEPTED", "target": "counts", "run": FAILS}
        ),
        "request with two runs": sql("UPDATE runs SET request_id = 'counts' WHERE id = ?", FAILS),
        "request never answered": edited("answers.jsonl", '"target": "never"', '"target": "other"'),
        "request remembered as another run": sql(
            "UPDATE requests SET answer_id = ? WHERE request_id = 'counts'", FAILS
        ),
        "run nobody asked for": sql("UPDATE runs SET request_id = 'nobody' WHERE id = ?", NEVER),
    },
    "no_attempt_started_twice": {
        "second start in the same slot": again("counts", "a1", 500.0),
        "start in an unknown slot": again("counts", "zz", 500.0),
        "start in the slot of another run": again("counts", "a2", 500.0),
        "start of what its agent sent back": attempt(WAITS, SENT_BACK),
        "start of what could not start": attempt(FAILS, "start_time = NULL"),
    },
    "no_two_attempts_of_a_run_lived_at_once": {
        "two starts at once, of an attempt that was not lost": all_of(one_more(COUNTS), begins(COUNTS, 2, 101.5)),
        "a lost one lives after its agent was back": all_of(
            one_more(LOST), begins(LOST, 1, 55.0), begins(LOST, 2, 56.0)
        ),
        "the next one is placed when the agent of the lost one is back": all_of(
            one_more(LOST),
            begins(LOST, 1, 25.0),
            begins(LOST, 2, 26.0),
            of_attempt(LOST, 2, f"assign_time = {usec(48.0)}"),
        ),
        "two starts at once by time": again("counts", "a1", 101.5),
        "two starts at once by lock": edited("ledger/counts.a1", '"alone": true', '"alone": false'),
    },
    "every_log_equals_the_ledger": {
        "log cut off": log(COUNTS, OUTPUT[:-1]),
        "log of a killed program cut off": log(WAITS, OUTPUT[:-1]),
        "log with a byte more": log(COUNTS, OUTPUT + b"x"),
        "log with a byte changed": log(COUNTS, b"F" + OUTPUT[1:]),
        "log gone": lambda it: it.log(LOST).unlink(),
        "hole in a log, its loss recorded": all_of(log(COUNTS, b"\0" * 5 + OUTPUT[5:]), lost_output(COUNTS, 0, 5)),
        "log not sealed": attempt(COUNTS, "log_sealed = 0"),
        "log of another size than its row says": attempt(COUNTS, "log_bytes = 1"),
        "log that the ledger does not know": written("ledger/counts.a1", ""),
    },
    "no_output_is_lost": {
        "log gone and its loss recorded": all_of(log(COUNTS, b""), lost_output(COUNTS, 0, None)),
        "loss recorded and nothing missing": lost_output(COUNTS, len(OUTPUT), 0),
    },
    "reserved_capacity_is_zero": {
        "container not known to be gone": attempt(COUNTS, "released = 0"),
        "attempt not settled": attempt(COUNTS, "desired = 'STOP'"),
    },
    "every_agent_can_be_filled": {
        "agent not filled": all_of(run_row(FILLS, "attempt = 0"), sql("DELETE FROM attempts WHERE run_id = ?", FILLS)),
    },
    "nothing_is_left_on_the_hosts": {
        "container left": left_over(containers=["ff-a1 Exited"]),
        "volume left": left_over(volumes={"a1": "4711"}),
        "control group left": left_over(cgroups={"a2": "/sys/fs/cgroup/memory/fastflow/a2"}),
        "mount left": left_over(mounts=["overlay"]),
        "process left": left_over(processes=["12 python"]),
        "slot folder left": left_over(files=["/slots/a1"]),
    },
    "every_verdict_is_true": {
        "time limit of what never began and has none": all_of(
            both(WAITS, "state = 'TIMED_OUT'"), deleted("ledger/waits.a3")
        ),
        "drained before the drain": attempt(DRAINED, f"end_time = {usec(39.0)}, start_time = NULL"),
        "drained after the drain": attempt(DRAINED, f"assign_time = {usec(51.0)}, end_time = {usec(52.0)}"),
        "stopped before the deadline of the drain": attempt(DRAINED, f"end_time = {usec(41.0)}"),
        "stopped by a drain without a deadline": edited("deeds.jsonl", '"deadline": 2.0', '"deadline": null'),
        "stopped by a drain that was over before its deadline": edited(
            "deeds.jsonl", '"deadline": 2.0', '"deadline": 12.0'
        ),
        "success of a program that did not end": edited("ledger/counts.a1", '"step": "end"', '"step": "else"'),
        "success with an exit code": both(COUNTS, "exit_code = 1"),
        "failure with another exit code": both(FAILS, "exit_code = 8"),
        "failure of what succeeded": both(COUNTS, "state = 'FAILED', reason = 'EXIT_CODE', exit_code = 1"),
        "failure for another reason": both(FAILS, "reason = 'CONTAINER_VANISHED'"),
        "failure to start": never_began,
        "out of memory not seen": both(OVER, "reason = 'SIGNAL'"),
        "time limit of what has none": both(WAITS, "state = 'TIMED_OUT'"),
        "cancel that nobody asked for": not_cancelled("waits"),
        "sent back by an agent that was not drained": attempt(FAILS, SENT_BACK),
        "lost without an outage": calm,
        "lost before its agent was away for long": attempt(LOST, f"end_time = {usec(19.0)}"),
        "lost when its agent was back": attempt(LOST, f"end_time = {usec(46.0)}"),
        "lost though its agent was there meanwhile": written("cluster/controlplane.log", seen(5.0) + seen(20.0)),
        "lost, and its late result not kept": sql("DELETE FROM attempt_events WHERE run_id = ? AND sequence = 2", LOST),
        "lost, and its late result untrue": sql(
            "UPDATE attempt_events SET fact = ? WHERE run_id = ? AND sequence = 2",
            json.dumps({"state": "FAILED", "reason": "EXIT_CODE", "exit_code": 1}),
            LOST,
        ),
    },
    "journals_tell_the_same": {
        "journal of another token": attempt(COUNTS, "claim_token = 'other'"),
        "two journals of one attempt": other_journal("b1", journal(COUNTS, "SUCCEEDED")),
        "released twice": step_again(COUNTS, "RELEASED", 5),
        "steps out of order": step_again(COUNTS, "STARTED", 6),
        "event missing in a journal": events_of(COUNTS, 1, 3),
        "journal with another end": other_journal("a1", journal(COUNTS, "FAILED")),
    },
    "every_start_has_a_whole_journal": {
        "no journals": deleted(*(f"journals/plain-1/{slot_of(run)}" for run in KEYS if run != NEVER)),
        "one journal missing": deleted(f"journals/plain-1/{slot_of(COUNTS)}"),
        "journal that breaks off": other_journal(slot_of(COUNTS), journal(COUNTS, "SUCCEEDED")[:-1]),
    },
    "no_program_failed": {
        "program crashed before it was killed": edited("deeds.jsonl", '"found": -9', '"found": -11'),
        "program ended with an error when it was stopped": edited("deeds.jsonl", '"found": 0', '"found": 1'),
        "program that had begun did not stop in order": edited("deeds.jsonl", '"found": 0', '"found": -15'),
        "program had ended when its turn came": edited("deeds.jsonl", '"found": null', '"found": -11'),
        "program's interpreter failed": written("cluster/plain-1.log", "Fatal Python error: Segmentation fault\n"),
        "program ended with an error": written("endings.json", '{"plain-1": 1}'),
        "program did not end": written("deeds.jsonl", '{"what": "HUNG", "target": "plain-1", "monotonic": 1.0}\n'),
        "traceback in a program's log": written("cluster/plain-1.log", "Traceback (most recent call last):\n"),
    },
    "the_script_was_carried_out": {
        "call refused": noted("FAULT", "CANCEL waits", error="StatusCode.INTERNAL"),
        "call not answered": edited("answers.jsonl", '"CANCELLED"', '"OTHER"'),
        "nothing done": calm,
        "not settled": edited("deeds.jsonl", '"SETTLED"', '"OTHER"'),
        "not filled": edited("deeds.jsonl", '"FILLED"', '"OTHER"'),
    },
}
