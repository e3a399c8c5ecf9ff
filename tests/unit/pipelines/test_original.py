"""Repositories of the original Fast-Flow: what means nothing here, and what means another day."""

import pytest
from fastflow.pipelines.metadata import FIELDS
from fastflow.pipelines.original import REMEDIES, other_weekdays, weekday_problems


@pytest.mark.parametrize(
    ("weekday", "was", "now", "write"),
    [
        ("0", "meant Monday", "in cron it means Sunday", "write MON to keep"),
        ("1", "meant Tuesday", "in cron it means Monday", "write TUE to keep"),
        ("6", "meant Sunday", "in cron it means Saturday", "write SUN to keep"),
        ("1-5", "Friday and Saturday", "Thursday and Friday", "write TUE-SAT to keep"),
        ("1,3", "meant Tuesday and Thursday", "in cron it means Monday and Wednesday", "write TUE,THU to keep"),
        ("*/2", "meant Monday, Wednesday, Friday and Sunday", "Tuesday, Thursday, Saturday and Sunday", "MON,WED,FRI"),
        ("0,mon", "meant Monday", "in cron it means Monday and Sunday", "write MON to keep"),
    ],
)
def test_a_weekday_number_that_means_another_day_is_told_with_both_and_a_name(
    weekday: str, was: str, now: str, write: str
) -> None:
    message = other_weekdays(f"0 9 * * {weekday}")
    assert was in message
    assert now in message
    assert write in message


@pytest.mark.parametrize("weekday", ["*", "mon", "MON-FRI", "sat,sun", "0-6", "*/1"])
def test_weekdays_that_mean_the_same_are_not_told(weekday: str) -> None:
    assert other_weekdays(f"0 9 * * {weekday}") == ""


@pytest.mark.parametrize("expression", ["", "0 3", "* * * *", "@daily", "0 0 0 * * 1", "60"])
def test_what_is_no_cron_expression_is_not_told(expression: str) -> None:
    assert other_weekdays(expression) == ""


@pytest.mark.parametrize(("weekday", "day"), [("7", "SUN"), ("5-7", "FRI-SUN")])
def test_a_sunday_written_as_seven_never_ran_in_the_original(weekday: str, day: str) -> None:
    message = other_weekdays(f"0 9 * * {weekday}")
    assert "never ran" in message
    assert f"write {day} if that is meant" in message


@pytest.mark.parametrize("weekday", ["8", "1-x", "*/0", "1//2"])
def test_weekdays_nobody_can_read_are_told(weekday: str) -> None:
    assert "are no weekdays" in other_weekdays(f"0 9 * * {weekday}")


def test_every_schedule_of_the_metadata_is_looked_at() -> None:
    document = {
        "schedule_cron": "0 9 * * 1",
        "restart_interval": "0 3 * * 0",
        "schedules": [{"cron": "0 1 * * mon"}, "nonsense", {"schedule_cron": "0 1 * * 2"}],
    }
    found = [problem.field for problem in weekday_problems(document, "pipeline.json")]
    assert found == ["schedule_cron", "restart_interval", "schedules[2].schedule_cron"]


def test_values_of_other_kinds_are_passed_over() -> None:
    assert weekday_problems({"schedule_cron": 5, "restart_interval": None, "schedules": {}}, "pipeline.json") == []


def test_no_field_is_both_read_and_without_effect() -> None:
    assert not set(FIELDS) & set(REMEDIES)
