from fastflow_agent.uvcache.pruning import Verdict, Weighed, judge

NOW = 1000.0
OLD, NEW = 10.0, 900.0
OLDEST = 500.0


def test_what_was_not_used_for_too_long_goes() -> None:
    weighed = [Weighed(1, 10, (OLD, OLD)), Weighed(2, 10, (OLD, NEW)), Weighed(3, 10, (NEW,))]
    assert judge(weighed, (), oldest_use=OLDEST, limit=1000) == Verdict((1,))


def test_what_is_in_use_stays_whatever_its_age_and_size() -> None:
    weighed = [Weighed(1, 10, (OLD,)), Weighed(2, 500, (OLD,)), Weighed(3, 10, (NEW,))]
    assert judge(weighed, {1, 2}, oldest_use=OLDEST, limit=100) == Verdict((), close=True)


def test_what_was_used_longest_ago_goes_until_there_is_room() -> None:
    weighed = [Weighed(1, 40, (700.0,)), Weighed(2, 40, (600.0,)), Weighed(3, 40, (NEW,))]
    assert judge(weighed, (), oldest_use=OLDEST, limit=80) == Verdict((2,))
    assert judge(weighed, (), oldest_use=OLDEST, limit=79) == Verdict((2, 1))


def test_the_newest_is_not_taken_for_its_size_but_copied_no_further() -> None:
    assert judge([Weighed(1, 500, (NEW,))], (), oldest_use=OLDEST, limit=100) == Verdict((), close=True)


def test_the_newest_is_copied_no_further_once_most_of_it_is_unused() -> None:
    half = [Weighed(1, 5, (OLD, NEW))]
    most = [Weighed(1, 5, (OLD, OLD, NEW))]
    assert judge(half, (), oldest_use=OLDEST, limit=100) == Verdict()
    assert judge(most, (), oldest_use=OLDEST, limit=100) == Verdict((), close=True)


def test_an_empty_cache_has_nothing_to_lose() -> None:
    assert judge([], (), oldest_use=OLDEST, limit=0) == Verdict()
