"""What must hold after a chaos run, each rule apart; every one says in words what broke it."""

from collections.abc import Callable, Iterator

from tests.chaos.evidence import Evidence
from tests.chaos.ledger import BrokenLedger
from tests.chaos.rules.journals import every_start_has_a_whole_journal, journals_tell_the_same
from tests.chaos.rules.leftovers import (
    every_agent_can_be_filled,
    nothing_is_left_on_the_hosts,
    reserved_capacity_is_zero,
)
from tests.chaos.rules.logs import every_log_equals_the_ledger, no_output_is_lost
from tests.chaos.rules.programs import no_program_failed, the_script_was_carried_out
from tests.chaos.rules.runs import a_request_is_one_run, every_accepted_run_ended_once, every_run_ended_for_a_cause
from tests.chaos.rules.starts import no_attempt_started_twice, no_two_attempts_of_a_run_lived_at_once
from tests.chaos.rules.verdicts import every_verdict_is_true

Rule = Callable[[Evidence], Iterator[str]]

RULES: tuple[Rule, ...] = (
    every_accepted_run_ended_once,
    every_run_ended_for_a_cause,
    a_request_is_one_run,
    no_attempt_started_twice,
    no_two_attempts_of_a_run_lived_at_once,
    every_log_equals_the_ledger,
    no_output_is_lost,
    reserved_capacity_is_zero,
    every_agent_can_be_filled,
    nothing_is_left_on_the_hosts,
    every_verdict_is_true,
    journals_tell_the_same,
    every_start_has_a_whole_journal,
    no_program_failed,
    the_script_was_carried_out,
)


def violations(evidence: Evidence) -> list[str]:
    """Everything that any rule finds wrong, with the rule's name; also that it could not look."""
    return [f"{check.__name__}: {found}" for check in RULES for found in _found(check, evidence)]


def _found(check: Rule, evidence: Evidence) -> Iterator[str]:
    try:
        yield from check(evidence)
    except (OSError, ValueError, LookupError, BrokenLedger) as error:
        yield f"can not be told: {error!r}"
