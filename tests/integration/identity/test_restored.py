from tests.cluster.restored import Restored


class TestRestored(Restored):
    """With the process runtime."""
