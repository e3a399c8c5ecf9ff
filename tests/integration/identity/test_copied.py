from tests.cluster.copied import Copied, Keyless


class TestCopied(Copied):
    """With the process runtime."""


class TestKeyless(Keyless):
    """With the process runtime."""
