"""Alembic's entry: migrates over the connection that `migrate` hands in."""

from alembic import context

from fastflow_controlplane.store.models import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite can not alter a table in place; Alembic copies it instead.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
