"""Which generations go by age and by size."""

from collections.abc import Container, Sequence

from fastflow_agent.uvcache.pruning import Stock, Weighed, judge

OLD, NEW = 10.0, 900.0
OLDEST = 500.0
STOCK = Stock(9, 100, 20)


def judged(
    weighed: Sequence[Weighed], stock: Stock | None = None, kept: Container[int] = (), limit: int = 1000
) -> tuple[int, ...]:
    return judge(weighed, stock, kept, oldest_use=OLDEST, limit=limit)


def test_what_was_not_used_for_too_long_goes() -> None:
    assert judged([Weighed(1, 10, OLD), Weighed(2, 10, NEW), Weighed(3, 10, OLD)]) == (1, 3)


def test_what_is_in_use_stays_whatever_its_age_and_size() -> None:
    weighed = [Weighed(1, 10, OLD), Weighed(2, 500, OLD), Weighed(3, 10, NEW)]
    assert judged(weighed, Stock(9, 100, 90), kept={1, 2, 9}, limit=100) == ()


def test_what_was_used_longest_ago_goes_until_there_is_room() -> None:
    weighed = [Weighed(1, 40, 700.0), Weighed(2, 40, 600.0), Weighed(3, 40, NEW)]
    assert judged(weighed, limit=80) == (2,)
    assert judged(weighed, limit=79) == (2, 1)


def test_what_was_fetched_goes_before_any_environment() -> None:
    weighed = [Weighed(1, 40, 700.0), Weighed(2, 40, 600.0)]
    assert judged(weighed, STOCK, limit=100) == ()
    assert judged(weighed, STOCK, limit=99) == (9,)
    assert judged(weighed, STOCK, limit=79) == (9, 2)


def test_the_one_used_last_is_not_taken_for_its_size() -> None:
    assert judged([Weighed(1, 500, NEW)], limit=100) == ()


def test_what_was_fetched_goes_once_most_of_it_is_of_no_environment() -> None:
    weighed = [Weighed(1, 40, NEW)]
    assert judged(weighed, Stock(9, 100, 50)) == ()
    assert judged(weighed, Stock(9, 100, 51)) == (9,)


def test_an_empty_cache_has_nothing_to_lose() -> None:
    assert judged([], limit=0) == ()
