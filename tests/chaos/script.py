"""What happens in a chaos run, and when: a pure function of the seed and the length."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from random import Random

CONTROLPLANE = "controlplane"
AGENTS = ("plain-1", "plain-2", "boxed-1")
"""Two agents with plain processes and one with containers."""

KINDS = {
    "lines": 20,
    "again": 12,
    "seven": 12,
    "children": 12,
    "bursts": 12,
    "sleeps": 10,
    "tidy": 8,
    "late": 8,
    "hog": 8,
}
"""Kinds of pipelines with their weights; see `pipeline/main.py`."""
WHOLE = "whole"
"""Kind of those that take all of an agent, at the end."""
RETRIED = frozenset({"again"})
"""Kinds that start anew when they are lost."""
RETRIES = 2
"""How often at the most."""
ENDLESS = frozenset({"sleeps", "tidy"})
"""Kinds that end only when somebody stops them."""

RUN_SECONDS = 0.9
"""Mean time between two requests for runs."""
OUTAGE_SECONDS = 12.0
"""Mean time between the end of an outage of one program and its next one."""
CUT_SECONDS = 14.0
"""The same for the network of one agent."""
DRAIN_SECONDS = 25.0
"""Mean time between two drains of one agent."""
BLACKOUT_SECONDS = 50.0
"""Mean time between two moments in which everything is killed at once."""
CANCELLED = 0.1
"""Share of the runs that would end by themselves and are cancelled nevertheless."""
REPEATED = 0.25
"""Share of requests that are sent again under the same id."""


class Act(StrEnum):
    """What is done."""

    SUBMIT = "SUBMIT"
    CANCEL = "CANCEL"
    KILL = "KILL"
    STOP = "STOP"
    START = "START"
    FREEZE = "FREEZE"
    THAW = "THAW"
    CUT = "CUT"
    STALL = "STALL"
    HEAL = "HEAL"
    DRAIN = "DRAIN"
    RESUME = "RESUME"


UNDOES = {
    Act.KILL: Act.START,
    Act.STOP: Act.START,
    Act.FREEZE: Act.THAW,
    Act.CUT: Act.HEAL,
    Act.STALL: Act.HEAL,
    Act.DRAIN: Act.RESUME,
}
NETWORK = frozenset({Act.CUT, Act.STALL, Act.HEAL})
OPERATOR = frozenset({Act.DRAIN, Act.RESUME})


def layer(act: Act) -> str:
    """What of its target an act changes; in each layer one outage follows the other."""
    return "network" if act in NETWORK else "operator" if act in OPERATOR else "program"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do `at` seconds after the beginning, to a program or a run (by key).

    `kind` is that of a run to submit; `deadline` the seconds after which a drain stops what runs, None = never.
    """

    at: float
    act: Act
    target: str
    kind: str = ""
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """All steps of one chaos run, in order; after `seconds` everything is healed.

    `filling` are steps for the time when all runs have ended: one more for each agent, which takes all of it.
    """

    seed: int
    seconds: float
    steps: tuple[Step, ...]
    filling: tuple[Step, ...]

    @classmethod
    def of(cls, seed: int, seconds: float) -> "Script":
        """The script of a seed; the same one each time, on every machine."""
        steps = [*_requests(seed, seconds)]
        blackouts = [*_outages(Random(f"{seed} blackouts"), seconds, BLACKOUT_SECONDS, [Act.KILL], [])]
        for program in (CONTROLPLANE, *AGENTS):
            steps += _done_to(program, blackouts)
            acts = [Act.KILL, Act.KILL, Act.STOP, Act.FREEZE]
            steps += _done_to(program, _outages(Random(f"{seed} {program}"), seconds, OUTAGE_SECONDS, acts, blackouts))
        for agent in AGENTS:
            cuts = _outages(Random(f"{seed} network of {agent}"), seconds, CUT_SECONDS, [Act.CUT, Act.STALL], [])
            steps += _done_to(agent, cuts)
            steps += _drains(seed, agent, seconds)
        return cls(
            seed,
            seconds,
            tuple(sorted(steps, key=lambda step: (step.at, step.target, step.act))),
            tuple(_filling(seed, seconds)),
        )

    def to_json(self) -> str:
        """The script as it is kept with the evidence."""
        return json.dumps(asdict(self))

    def keys(self) -> dict[str, str]:
        """Key of each run to submit → its kind."""
        return {step.target: step.kind for step in (*self.steps, *self.filling) if step.act is Act.SUBMIT}


@dataclass(frozen=True, slots=True)
class _Outage:
    act: Act
    begin: float
    end: float


def _requests(seed: int, seconds: float) -> Iterator[Step]:
    """Runs of kinds by chance, and in a short script one more of each kind that chance left out."""
    chance, at, number = Random(f"{seed} requests"), 0.0, 0
    left = dict.fromkeys(KINDS)
    while (at := at + chance.expovariate(1 / RUN_SECONDS)) < seconds:
        number += 1
        key = f"s{seed}-{number}"
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        yield Step(at, Act.SUBMIT, key, kind)
        if chance.random() < REPEATED:
            yield Step(at + chance.choice([0.0, 0.05, chance.uniform(0, 10)]), Act.SUBMIT, key, kind)
        cancelled = kind in ENDLESS or chance.random() < CANCELLED
        if cancelled:
            # Also at once: before it is placed, while it is placed, while it starts.
            yield Step(at + chance.choice([0.0, chance.uniform(0, 2), chance.uniform(0, 15)]), Act.CANCEL, key)
        if kind in ENDLESS or not cancelled:
            left.pop(kind, None)
    for kind in left:
        number += 1
        at = chance.uniform(0, seconds / 2)
        yield Step(at, Act.SUBMIT, f"s{seed}-{number}", kind)
        if kind in ENDLESS:
            yield Step(at + chance.uniform(5, 15), Act.CANCEL, f"s{seed}-{number}")


def _filling(seed: int, seconds: float) -> Iterator[Step]:
    for act in (Act.SUBMIT, Act.CANCEL):
        for agent in AGENTS:
            yield Step(seconds, act, f"s{seed}-{agent}", WHOLE)


def _drains(seed: int, agent: str, seconds: float) -> Iterator[Step]:
    """Drains with a deadline, at once, and without."""
    outages = _outages(Random(f"{seed} drains of {agent}"), seconds, DRAIN_SECONDS, [Act.DRAIN], [])
    chance = Random(f"{seed} deadlines of {agent}")
    for step in _done_to(agent, outages):
        deadline = chance.choice([None, 0.0, chance.uniform(0, 4)]) if step.act is Act.DRAIN else None
        yield replace(step, deadline=deadline)


def _outages(
    chance: Random, seconds: float, gap: float, acts: Sequence[Act], others: Sequence[_Outage]
) -> Iterator[_Outage]:
    """Outages one after the other, none of which meets one of `others`."""
    at = chance.expovariate(1 / gap)
    while at < seconds:
        outage = _Outage(chance.choice(acts), at, min(at + _duration(chance), seconds))
        if not any(other.begin <= outage.end and outage.begin <= other.end for other in others):
            yield outage
        # At times the next one comes before the program has found its feet.
        at = outage.end + (chance.uniform(0.2, 1.5) if chance.random() < 0.25 else chance.expovariate(1 / gap))


def _duration(chance: Random) -> float:
    """Mostly a moment, at times longer than an agent may be away."""
    (longest,) = chance.choices([0.3, 2.0, 6.0, 28.0], [40, 40, 14, 6])
    return chance.uniform(0.5, 1.0) * longest


def _done_to(target: str, outages: Sequence[_Outage] | Iterator[_Outage]) -> Iterator[Step]:
    for outage in outages:
        yield Step(outage.begin, outage.act, target)
        yield Step(outage.end, UNDOES[outage.act], target)
