"""Waiting times grow to the maximum, spread out, and start over after a success."""

from fastflow.backoff import Backoff


def test_waits_double_up_to_the_maximum() -> None:
    backoff = Backoff(1.0, 5.0, uniform=lambda low, high: high)
    assert [backoff.next() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_waits_are_spread_so_that_clients_do_not_return_in_step() -> None:
    bounds: list[tuple[float, float]] = []
    backoff = Backoff(1.0, 5.0, uniform=lambda low, high: bounds.append((low, high)) or low)
    assert backoff.next() == 0.1
    assert bounds == [(0.1, 1.0)]


def test_a_success_starts_over() -> None:
    backoff = Backoff(1.0, 60.0, uniform=lambda low, high: high)
    backoff.next()
    backoff.next()
    backoff.reset()
    assert backoff.next() == 1.0


def test_a_peer_away_for_days_does_not_overflow() -> None:
    backoff = Backoff(1.0, 60.0, uniform=lambda low, high: high)
    assert [backoff.next() for _ in range(5000)][-1] == 60.0
