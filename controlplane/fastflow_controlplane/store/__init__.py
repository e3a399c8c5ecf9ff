"""The database: the only place with SQL. Rows stay in here; other packages get plain dataclasses.

A write that spans several decisions is a function of a `Connection`, handed to the writer as one operation; who
writes such a function names the type, and does all else through `queries`.
"""

from sqlalchemy import Connection

__all__ = ["Connection"]
