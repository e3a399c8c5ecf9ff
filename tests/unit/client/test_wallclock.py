"""Labels that keep order on a host whose clock is set."""

from itertools import pairwise

from fastflow.service.wallclock import WallClock

SECOND = 1_000_000_000


class Host:
    """The clocks of a host, in nanoseconds."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000 * SECOND
        self.monotonic = 5 * SECOND
        self.clock = WallClock(lambda: self.wall, lambda: self.monotonic)

    def passes(self, seconds: float) -> None:
        self.wall += int(seconds * SECOND)
        self.monotonic += int(seconds * SECOND)

    @property
    def ahead(self) -> float:
        """Seconds by which the label is ahead of the host's clock."""
        return self.clock.now() / 1e6 - self.wall / 1e9


def test_it_is_the_hosts_clock() -> None:
    host = Host()
    host.passes(12.5)
    assert host.ahead == 0


def test_a_clock_set_forward_is_followed_at_once() -> None:
    host = Host()
    host.wall += 3600 * SECOND
    assert host.ahead == 0


def test_a_clock_set_back_is_caught_up_with_slowly_and_the_label_never_stands_still() -> None:
    host = Host()
    before = host.clock.now()
    host.wall -= 3600 * SECOND
    labels = [before]
    for _ in range(10):
        host.passes(60)
        labels.append(host.clock.now())
    assert all(later - earlier == 54_000_000 for earlier, later in pairwise(labels))
    host.passes(10 * 3600)
    assert abs(host.ahead) < 1
