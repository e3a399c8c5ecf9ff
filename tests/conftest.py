"""What all tests share."""

import pytest
from hypothesis import settings

# So that a failing scenario shows its values.
pytest.register_assert_rewrite("tests.cluster")

# How long one example takes says something of the machine's load, nothing of the code.
settings.register_profile("fastflow", deadline=None)
settings.load_profile("fastflow")
