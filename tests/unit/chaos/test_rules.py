"""The checker of the chaos suite finds what was tampered with, rule by rule, and nothing where all is well."""

import json

import pytest

from tests.chaos.evidence import Evidence
from tests.chaos.rules import RULES, no_two_attempts_of_a_run_lived_at_once, violations
from tests.unit.chaos.aftermath import COUNTS, KEYS, LOST, OUTPUT, WAITS, Aftermath, deed, slot_of
from tests.unit.chaos.tampered import TAMPERED
from tests.unit.chaos.tampering import Tamper, all_of, begins, cancelled, log, of_kind, one_more, run_row


def test_nothing_is_found_where_all_is_well(aftermath: Aftermath) -> None:
    assert violations(Evidence(aftermath.folder)) == []


@pytest.mark.parametrize(
    ("name", "tamper"),
    [pytest.param(name, tamper, id=title) for name, found in TAMPERED.items() for title, tamper in found.items()],
)
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
    assert list(TAMPERED) == [check.__name__ for check in RULES]


def test_a_program_killed_while_it_printed_may_have_printed_any_part_of_it(aftermath: Aftermath) -> None:
    path = aftermath.folder / "ledger/waits.a3"
    path.write_text(path.read_text().rpartition('{"monotonic"')[0])
    for printed in range(len(OUTPUT) + 1):
        log(WAITS, OUTPUT[:printed])(aftermath)
        assert violations(Evidence(aftermath.folder)) == []
    log(WAITS, OUTPUT + b"x")(aftermath)
    assert violations(Evidence(aftermath.folder))


@pytest.mark.parametrize(("run", "found"), [(LOST, 0), (COUNTS, 2)])
def test_only_a_lost_attempt_may_live_beside_the_one_that_followed_it(
    aftermath: Aftermath, run: str, found: int
) -> None:
    all_of(one_more(run), begins(run, 1, 25.0), begins(run, 2, 26.0))(aftermath)
    aftermath.replace(f"ledger/{KEYS[run]}.{slot_of(run, 2)}", '"alone": true', '"alone": false')
    assert len(list(no_two_attempts_of_a_run_lived_at_once(Evidence(aftermath.folder)))) == found


@pytest.mark.parametrize("name", ["host.json", "endings.json", "deeds.jsonl", "ledger/counts.a1"])
def test_evidence_that_is_broken_is_a_violation_and_no_end_of_all_judging(aftermath: Aftermath, name: str) -> None:
    aftermath.put(name, "{\n")
    found = violations(Evidence(aftermath.folder))
    assert [violation for violation in found if "can not be told" in violation]


def test_a_deed_that_is_missing_is_a_violation_and_no_end_of_all_judging(aftermath: Aftermath) -> None:
    aftermath.put("deeds.jsonl", json.dumps(deed("START", "plain-1", 30.0, {"found": -9})) + "\n")
    found = violations(Evidence(aftermath.folder))
    assert [violation for violation in found if "can not be told" in violation]
    assert [violation for violation in found if "KILL plain-1 did not come" in violation]


def test_what_a_program_said_as_it_was_killed_may_be_cut_off(aftermath: Aftermath) -> None:
    log = aftermath.folder / "cluster/controlplane.log"
    log.write_text('{"agent": "plain-1", "sess' + log.read_text())
    assert violations(Evidence(aftermath.folder)) == []


def test_a_program_that_still_begins_may_end_by_the_signal_itself(aftermath: Aftermath) -> None:
    aftermath.replace("deeds.jsonl", '"found": 0', '"found": -15')
    aftermath.replace("deeds.jsonl", '"catches": true', '"catches": false')
    assert violations(Evidence(aftermath.folder)) == []
