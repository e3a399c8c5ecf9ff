"""What the script did says when an agent was away, and so when its attempts may be LOST."""

import pytest

from tests.chaos.absence import Absence, Absences
from tests.chaos.script import CONTROLPLANE, UNDOES, Act

WALL = 1_000_000.0
AGENT, OTHER = "plain-1", "plain-2"


def outage(act: Act, target: str, begin: float, end: float) -> list[dict[str, object]]:
    """What is written down of an outage; every deed takes a tenth of a second."""
    return [
        {"what": str(what), "target": target, "begun": at, "monotonic": at + 0.1, "wall": WALL + at + 0.1}
        for what, at in ((act, begin), (UNDOES[act], end - 0.1))
    ]


def absences(
    *outages: list[dict[str, object]],
    seen: tuple[float, ...] = (0.0,),
    ready: tuple[float, ...] = (),
    begun: tuple[float, ...] = (),
) -> Absences:
    """Of AGENT, seen at these moments; control plane and agent had begun at those; the deeds come in order."""
    deeds = sorted((deed for each in outages for deed in each), key=lambda deed: float(str(deed["monotonic"])))
    said = {CONTROLPLANE: [WALL + moment for moment in ready], AGENT: [WALL + moment for moment in begun]}
    return Absences(deeds, {AGENT: [WALL + moment for moment in seen]}, said)


@pytest.mark.parametrize("act", [Act.KILL, Act.STOP, Act.FREEZE, Act.CUT, Act.STALL])
def test_an_agent_is_away_from_the_beginning_of_an_outage_to_its_end(act: Act) -> None:
    (absence,) = absences(outage(act, AGENT, 10.0, 30.0)).of(AGENT)
    assert (absence.begin, absence.end) == pytest.approx((WALL + 10.0, WALL + 30.0))


def test_a_drain_keeps_nobody_away() -> None:
    assert absences(outage(Act.DRAIN, AGENT, 10.0, 30.0)).of(AGENT) == []


def test_outages_that_overlap_are_one_absence() -> None:
    assert len(absences(outage(Act.CUT, AGENT, 10.0, 20.0), outage(Act.KILL, AGENT, 15.0, 30.0)).of(AGENT)) == 1


def test_outages_are_one_absence_unless_the_agent_was_seen_in_between() -> None:
    two = outage(Act.CUT, AGENT, 10.0, 12.0), outage(Act.KILL, AGENT, 14.0, 30.0)
    assert len(absences(*two).of(AGENT)) == 1
    assert len(absences(*two, seen=(13.0,)).of(AGENT)) == 2


def test_an_agent_that_had_time_to_come_back_is_away_twice() -> None:
    assert len(absences(outage(Act.CUT, AGENT, 10.0, 12.0), outage(Act.KILL, AGENT, 28.0, 35.0)).of(AGENT)) == 2


@pytest.mark.parametrize(("moment", "lost"), [(9.0, False), (19.0, False), (20.0, True), (44.0, True), (46.0, False)])
def test_an_attempt_is_lost_once_its_agent_was_away_for_long_and_not_when_it_is_back(moment: float, lost: bool) -> None:
    found = absences(outage(Act.KILL, AGENT, 10.0, 30.0))
    assert (found.against_loss(AGENT, WALL + moment) == "") is lost


def test_short_outages_in_a_row_lose_an_attempt_where_the_agent_was_not_seen_in_between() -> None:
    two = outage(Act.CUT, AGENT, 10.0, 12.0), outage(Act.KILL, AGENT, 14.0, 30.0)
    assert absences(*two).against_loss(AGENT, WALL + 22.0) == ""
    assert "only been away for 8.0 s" in absences(*two, seen=(13.0,)).against_loss(AGENT, WALL + 22.0)


@pytest.mark.parametrize("target", [OTHER, CONTROLPLANE])
def test_the_outage_of_another_is_no_reason(target: str) -> None:
    assert "not away" in absences(outage(Act.FREEZE, target, 10.0, 15.0)).against_loss(AGENT, WALL + 24.0)


def test_what_was_not_seen_since_the_control_plane_began_is_lost_a_recovery_window_later() -> None:
    found = absences(outage(Act.KILL, AGENT, 10.0, 30.0), outage(Act.KILL, CONTROLPLANE, 11.0, 12.0))
    assert "only been back for 7.5 s" in found.against_loss(AGENT, WALL + 19.5)
    assert found.against_loss(AGENT, WALL + 20.5) == ""


def test_what_was_seen_since_the_control_plane_began_is_not() -> None:
    hurt = outage(Act.KILL, CONTROLPLANE, 11.0, 12.0), outage(Act.KILL, AGENT, 14.0, 40.0)
    assert absences(*hurt, seen=(13.0,)).against_loss(AGENT, WALL + 20.5) != ""
    assert absences(*hurt, seen=(13.0,)).against_loss(AGENT, WALL + 25.5) == ""


def test_what_a_control_plane_that_began_does_not_see_although_it_could_is_not_rightly_lost() -> None:
    hurt = outage(Act.KILL, CONTROLPLANE, 11.0, 12.0), outage(Act.KILL, AGENT, 30.0, 40.0)
    assert "though nothing kept it away" in absences(*hurt).against_loss(AGENT, WALL + 31.0)


def test_an_agent_that_begins_slowly_is_away_until_it_has_begun() -> None:
    two = outage(Act.KILL, AGENT, 10.0, 11.0), outage(Act.CUT, AGENT, 40.0, 60.0)
    assert "not away" in absences(*two).against_loss(AGENT, WALL + 39.0)
    assert absences(*two, begun=(28.0,)).against_loss(AGENT, WALL + 39.0) == ""
    assert "only been away" in absences(*two).against_loss(AGENT, WALL + 46.0)
    assert absences(*two, begun=(28.0,)).against_loss(AGENT, WALL + 46.0) == ""


def test_an_agent_that_is_killed_before_it_has_begun_is_away_until_another_has() -> None:
    two = outage(Act.KILL, AGENT, 10.0, 11.0), outage(Act.KILL, AGENT, 30.0, 31.0)
    (absence,) = absences(*two, begun=(9.0, 35.0)).of(AGENT)
    assert (absence.begin, absence.end) == pytest.approx((WALL + 10.0, WALL + 35.0))


def test_nobody_comes_back_to_a_control_plane_that_does_not_answer_yet() -> None:
    hurt = outage(Act.KILL, AGENT, 10.0, 30.0), outage(Act.KILL, CONTROLPLANE, 28.0, 50.0)
    assert absences(*hurt, ready=(57.0,)).against_loss(AGENT, WALL + 66.0) == ""
    assert "not away" in absences(*hurt, ready=(57.0,)).against_loss(AGENT, WALL + 73.0)
    assert "not away" in absences(*hurt, ready=(50.5,)).against_loss(AGENT, WALL + 66.0)
    still = outage(Act.KILL, AGENT, 10.0, 30.0), outage(Act.FREEZE, CONTROLPLANE, 28.0, 50.0)
    assert absences(*still).against_loss(AGENT, WALL + 64.0) == ""
    assert "not away" in absences(*still, ready=(60.0,)).against_loss(AGENT, WALL + 66.0)


def test_an_agent_that_came_back_before_the_control_plane_went_away_is_not_away_with_it() -> None:
    hurt = outage(Act.KILL, AGENT, 10.0, 30.0), outage(Act.KILL, CONTROLPLANE, 46.0, 50.0)
    assert "not away" in absences(*hurt, ready=(57.0,)).against_loss(AGENT, WALL + 66.0)


def test_what_a_control_plane_that_began_slowly_has_not_seen_yet_may_be_lost() -> None:
    hurt = outage(Act.KILL, CONTROLPLANE, 11.0, 12.0), outage(Act.KILL, AGENT, 30.0, 60.0)
    assert absences(*hurt, ready=(20.0,)).against_loss(AGENT, WALL + 31.0) == ""
    assert "though nothing kept it away" in absences(*hurt, ready=(14.0,)).against_loss(AGENT, WALL + 31.0)


def test_nothing_is_lost_right_after_the_control_plane_stood_still() -> None:
    away = outage(Act.KILL, AGENT, 10.0, 60.0)
    still = absences(away, outage(Act.FREEZE, CONTROLPLANE, 12.0, 30.0))
    assert "only been back" in still.against_loss(AGENT, WALL + 37.0)
    assert still.against_loss(AGENT, WALL + 39.0) == ""
    assert absences(away, outage(Act.FREEZE, CONTROLPLANE, 18.0, 21.0)).against_loss(AGENT, WALL + 22.0) == ""


def test_an_absence_is_found_by_a_moment_in_it() -> None:
    found = absences(outage(Act.KILL, AGENT, 10.0, 30.0))
    assert found.at(AGENT, WALL + 9.0) is None
    assert isinstance(found.at(AGENT, WALL + 20.0), Absence)
    assert found.at(OTHER, WALL + 20.0) is None
