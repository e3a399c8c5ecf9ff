from tests.cluster.copied import Copied, Keyless


class TestCopied(Copied):
    """With the Docker runtime."""


class TestKeyless(Keyless):
    """With the Docker runtime."""
