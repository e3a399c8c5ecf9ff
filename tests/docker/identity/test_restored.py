from tests.cluster.restored import Restored


class TestRestored(Restored):
    """With the Docker runtime."""
