"""The server: Debian's programs on a temporary folder, started, killed and stopped by its own pid."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg
from fastflow_controlplane.store.connections import parse_url
from fastflow_controlplane.store.migrations import migrate
from fastflow_controlplane.store.models import metadata
from sqlalchemy import Connection, NullPool, create_engine, text

from tests.ports import HeldPort

PASSWORD = "never-to-be-shown"
"""Of every database here, so that a test may look for it where it must not stand."""
START_SECONDS = 120.0
"""After a crash the server first reads its log again."""
STOP_SECONDS = 60.0
OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "32MB",
    # What a power cut would take is not under test, and a killed process leaves the page cache to the system.
    "fsync": "off",
    "full_page_writes": "off",
}


class PostgresServer:
    """A server and its databases; a context manager that stops it and removes its folder."""

    def __init__(self) -> None:
        self._programs = _programs()
        self._folder = Path(tempfile.mkdtemp(prefix="fastflow-postgres-"))
        self._data = self._folder / "data"
        self._log = self._folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._lent_before: list[str] = []
        self._held = HeldPort()
        self.port = self._held.number

    def __enter__(self) -> Self:
        try:
            self._initialize()
            self.start()
        except BaseException:
            self._held.close()
            shutil.rmtree(self._folder)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.resume()
            self._process.send_signal(signal.SIGINT)
            self._process.wait(STOP_SECONDS)
        self._held.close()
        shutil.rmtree(self._folder)

    def url(self, database: str) -> str:
        """URL of a database, as a user would set it."""
        return f"postgresql://fastflow:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    @contextlib.contextmanager
    def empty_database(self) -> Iterator[str]:
        """A new database without any table: its URL."""
        url = self._create()
        yield url
        self.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """A database with the newest schema and no rows: its URL. Whoever uses it leaves the schema as it is."""
        url = self._lent_before.pop() if self._lent_before else self._create()
        with self._connect(url) as connection:
            migrate(connection)
        yield url
        # Ten times as fast as to make a new one.
        with self._connect(url) as connection:
            names = ", ".join(table.name for table in metadata.sorted_tables)
            connection.execute(text(f"TRUNCATE {names}"))
            connection.commit()
        self._lent_before.append(url)

    def _create(self) -> str:
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    @contextlib.contextmanager
    def _connect(self, url: str) -> Iterator[Connection]:
        engine = create_engine(parse_url(url), poolclass=NullPool)
        with engine.connect() as connection:
            yield connection

    def execute(self, statement: str, url: str = "") -> list[tuple[Any, ...]]:
        """Executes one statement, of itself alone, and returns its rows."""
        with psycopg.connect(url or self.url("postgres"), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        deadline = time.monotonic() + START_SECONDS
        options = [word for name, value in OPTIONS.items() for word in ("-c", f"{name}={value}")]
        command = [self._programs / "postgres", "-D", self._data, "-p", self.port, *options]
        while True:
            if self._process is None or self._process.poll() is not None:
                # Right after a crash it refuses until the last process of the one before is gone.
                with self._log.open("ab") as log:
                    self._process = subprocess.Popen(self._as_owner(command), stdout=log, stderr=log)
            with contextlib.suppress(psycopg.OperationalError):
                self.execute("SELECT 1")
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL does not answer:\n{self._log.read_text()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Kills the server with all its processes, as a crash of its host would."""
        assert self._process is not None, "the server does not run"
        server = psutil.Process(self._process.pid)
        victims = [server, *server.children(recursive=True)]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        self._process.wait()
        psutil.wait_procs(victims[1:], timeout=STOP_SECONDS)
        self._process = None

    def freeze(self) -> None:
        """Stops all its processes with SIGSTOP: connections stay open, nothing is answered."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a frozen server go on."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server does not run"
        server = psutil.Process(self._process.pid)
        for process in (server, *server.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _initialize(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        self._log.touch()
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            for path in (self._folder, password):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        command = [
            *(self._programs / "initdb", "--pgdata", self._data, "--username=fastflow", "--encoding=UTF8"),
            *("--auth=scram-sha-256", f"--pwfile={password}", "--no-sync", "--no-instructions"),
            # As people do have it: an order of words that is not that of their bytes.
            *("--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US"),
        ]
        subprocess.run(self._as_owner(command), check=True, capture_output=True)

    def _as_owner(self, command: Sequence[object]) -> list[str]:
        """PostgreSQL refuses to run as root. It ends with us, however we end."""
        user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        return ["setpriv", *user, "--pdeathsig=INT", *map(str, command)]


def _programs() -> Path:
    """The folder of the newest PostgreSQL installed; Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    elsewhere = shutil.which("initdb")
    assert elsewhere, "PostgreSQL is not installed: `make postgres` does it"
    return Path(elsewhere).parent
