"""What all tests share."""

from hypothesis import settings

# How long one example takes says something of the machine's load, nothing of the code.
settings.register_profile("fastflow", deadline=None)
settings.load_profile("fastflow")
