from tests.cluster.wiped import Wiped


class TestWiped(Wiped):
    """With the Docker runtime."""
