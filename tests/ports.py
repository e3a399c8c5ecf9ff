"""A port of loopback for a program that is started later, or again."""

import socket


class HeldPort:
    """Nobody is given `number` by the system until `close`, neither to listen at nor to call from.

    A port that was only looked up and let go may be another's when the program comes. This one is bound and never
    listened at: a call to it is refused, and any number of programs may listen there, one after the other, if they set
    SO_REUSEADDR as servers do. Source: socket(7).
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number = int(self._socket.getsockname()[1])

    def close(self) -> None:
        """Gives it back."""
        self._socket.close()
