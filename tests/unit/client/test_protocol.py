"""Which protocol two programs speak with each other."""

import pytest
from fastflow.protocol import Protocols


@pytest.mark.parametrize(
    ("ours", "theirs", "common"),
    [
        (Protocols(1, 2), Protocols(1, 2), 2),
        (Protocols(1, 2), Protocols(1, 1), 1),
        (Protocols(1, 1), Protocols(1, 2), 1),
        (Protocols(2, 3), Protocols(1, 2), 2),
        (Protocols(2, 3), Protocols(1, 1), None),
        (Protocols(1, 1), Protocols(2, 3), None),
        (Protocols(1, 2), Protocols(2, 1), None),
        (Protocols(1, 2), Protocols(0, 0), None),
    ],
)
def test_the_newest_that_both_speak_is_spoken(ours: Protocols, theirs: Protocols, common: int | None) -> None:
    assert ours.common(theirs) == common
    assert theirs.common(ours) == common
