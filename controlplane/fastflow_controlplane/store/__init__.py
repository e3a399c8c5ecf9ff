"""The database: the only place with SQL. Rows stay in here; other packages get plain dataclasses."""
