"""What becomes of a repository that was written for the original, single-host Fast-Flow.

It read more fields than are built yet, and its scheduler (APScheduler 3) counted weekdays from Monday = 0, where cron
(crontab(5)) counts from Sunday = 0: the same schedule means another day.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastflow.pipelines.problems import Problem, warning

_BY_HAND = "let cron or a systemd timer call `ffctl run` until then"
_ENDS = "a pipeline that ends is not started again: start it with `ffctl run`"
_SECRET = "set it with `ffctl secrets set NAME --pipeline PIPELINE`"
NOTEBOOK_REMEDY = "turn a notebook into a main.py with `jupyter nbconvert --to script`"
_MAIN_ONLY = f"only main.py is run: {NOTEBOOK_REMEDY}"

REMEDIES: Mapping[str, str] = {
    "retry_strategy": "a failed run stays FAILED: start it again with `ffctl run`",
    "schedule_cron": _BY_HAND,
    "schedule_interval_seconds": _BY_HAND,
    "schedule_start": _BY_HAND,
    "schedule_end": _BY_HAND,
    "run_once_at": _BY_HAND,
    "schedules": _BY_HAND,
    "downstream_triggers": "start one after the other: `ffctl run A --wait && ffctl run B`",
    "webhook_key": "start runs over the API, or with `ffctl run`",
    "max_instances": "as many runs live at once as limits and agents allow",
    "restart_on_crash": _ENDS,
    "restart_cooldown": _ENDS,
    "restart_interval": _ENDS,
    "type": _MAIN_ONLY,
    "cells": _MAIN_ONLY,
    "encrypted_env": _SECRET,
    "secrets": _SECRET,
}
"""Fields of the original Fast-Flow that are not built yet, and what to do instead: told, not refused."""

_NAMES = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_WEEK = frozenset(range(7))


def weekday_problems(document: Mapping[str, Any], file: str) -> list[Problem]:
    """Returns a warning for each schedule in the metadata `document` whose weekdays are not those they were."""
    return [warning(file, message, field) for field, text in _schedules(document) if (message := other_weekdays(text))]


def other_weekdays(expression: str) -> str:
    """Returns what to know of the weekdays of a cron expression of five fields, "" where they mean the same in both."""
    fields = expression.split()
    if len(fields) != 5 or not any(character.isdigit() for character in fields[4]):
        return ""
    written = fields[4]
    try:
        ours = _days(written, sunday_first=True)
    except ValueError:
        return f'"{written}" are no weekdays; write names, such as MON-FRI'
    meaning = f"in cron it means {_listed(ours)}"
    try:
        theirs = _days(written, sunday_first=False)
    except ValueError:
        return (
            f'weekday "{written}" was refused by the original Fast-Flow, so that schedule never ran; {meaning}; '
            f"write {_written(ours)} if that is meant"
        )
    if ours == theirs:
        return ""
    return (
        f'weekday "{written}" meant {_listed(theirs)} to the original Fast-Flow, which counts from Monday = 0; '
        f"{meaning}, counted from Sunday = 0; write {_written(theirs)} to keep the days it ran"
    )


def _schedules(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field in ("schedule_cron", "restart_interval"):
        if isinstance(text := document.get(field), str):
            yield field, text
    several = document.get("schedules")
    for number, item in enumerate(several if isinstance(several, list) else []):
        for key in ("cron", "schedule_cron"):
            if isinstance(item, Mapping) and isinstance(text := item.get(key), str):
                yield f"schedules[{number}].{key}", text


def _days(written: str, *, sunday_first: bool) -> frozenset[int]:
    """The days of a weekday field, Monday = 0, by either way to count. Raises ValueError where it can not be read."""
    found: set[int] = set()
    for item in written.split(","):
        span, _, step = item.partition("/")
        every = int(step) if step else 1
        if every < 1:
            raise ValueError(item)
        found |= {day % 7 for day in list(_span(span, sunday_first=sunday_first, stepped=bool(step)))[::every]}
    return frozenset(found)


def _span(span: str, *, sunday_first: bool, stepped: bool) -> Iterable[int]:
    # Numbers that grow through the week, from whichever day it begins with.
    first = -1 if sunday_first else 0
    if span == "*":
        return range(first, first + 7)
    begin, dash, end = span.partition("-")
    start = _day(begin, sunday_first=sunday_first)
    if not dash and not stepped:
        return (start,)
    stop = _day(end, sunday_first=sunday_first) if dash else first + 6
    if stop < start:
        # Names run over the end of the week, and so does Sunday where it is written as the last day.
        stop += 7
    return range(start, stop + 1)


def _day(text: str, *, sunday_first: bool) -> int:
    if text.upper() in _NAMES:
        return _NAMES.index(text.upper())
    number = int(text)
    if not 0 <= number <= (7 if sunday_first else 6):
        raise ValueError(text)
    return number - 1 if sunday_first else number


def _listed(days: frozenset[int]) -> str:
    if days == _WEEK:
        return "every day"
    names = [_DAYS[day] for day in sorted(days)]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _written(days: frozenset[int]) -> str:
    if days == _WEEK:
        return "*"
    ordered = sorted(days)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{_NAMES[ordered[0]]}-{_NAMES[ordered[-1]]}"
    return ",".join(_NAMES[day] for day in ordered)
