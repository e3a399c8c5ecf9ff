"""A real PostgreSQL for tests: a server of their own on a loopback port, and a database of its own for each test."""

from tests.postgres.server import PostgresServer

__all__ = ["PostgresServer"]
