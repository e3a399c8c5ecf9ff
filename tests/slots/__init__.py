"""Slots for tests: a runtime with folders of its own, programs given as text, everything removed in the end.

`contract` holds what every runtime promises, as tests for subclasses to bring their runtime to.
"""

import pytest

# Their failures are told as those of tests are.
pytest.register_assert_rewrite("tests.slots.contract", "tests.slots.workshop")

from tests.slots.addresses import Addresses, gitty  # noqa: E402
from tests.slots.contract import RuntimeContract  # noqa: E402
from tests.slots.package_index import PackageIndex, bridge_address  # noqa: E402
from tests.slots.packages import built_source, source_archive, tiny_wheel  # noqa: E402
from tests.slots.workshop import Ended, Slot, Workshop  # noqa: E402

__all__ = [
    "Addresses",
    "Ended",
    "PackageIndex",
    "RuntimeContract",
    "Slot",
    "Workshop",
    "bridge_address",
    "built_source",
    "gitty",
    "source_archive",
    "tiny_wheel",
]
