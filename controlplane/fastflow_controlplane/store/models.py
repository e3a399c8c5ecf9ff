"""Tables, portable between SQLite and PostgreSQL.

Conventions: ids are UUIDv7 text; times (`*_time`) are integer microseconds UTC; durations end in `_usec`; memory is
bytes, CPU is milli-cores; every integer stays below 2^53, so that JSON carries it unharmed. States, reasons and kinds
are the names of the protocol's enums without their prefix ("QUEUED", "OOM_KILLED"); reason "" = none.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Id = String(36)
Word = String(40)
Name = String(255)
ObjectId = String(64)

# One row: what this database is. `leader_epoch` rises each time a control plane takes it over.
cluster = Table(
    "cluster",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("cluster_id", Id, nullable=False),
    Column("leader_epoch", BigInteger, nullable=False),
    Column("create_time", BigInteger, nullable=False),
)

# One row: the id of the last commit, so that whoever comes back knows what became of theirs, and whether this is still
# the database that they knew.
last_commit = Table(
    "last_commit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("commit_id", Id, nullable=False),
)

# When a control plane was there to look after waiting runs; kept for as long as a run may wait, where that is limited.
uptimes = Table(
    "uptimes",
    metadata,
    Column("start_time", BigInteger, primary_key=True, autoincrement=False),
    Column("end_time", BigInteger, nullable=False),
)

# Agents that ever dialled in. `revision` counts changes of the agent's desired state; each attempt remembers the
# revision of its own last change, so that "what changed since" is one indexed query.
agents = Table(
    "agents",
    metadata,
    Column("agent_id", Id, primary_key=True),
    Column("name", Name, nullable=False, unique=True),
    Column("instance_id", Name, nullable=False),
    Column("boot_id", Name, nullable=False, default=""),
    Column("machine_id", Name, nullable=False, default=""),
    Column("session_epoch", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("host_name", Name, nullable=False, default=""),
    Column("kernel", Name, nullable=False, default=""),
    Column("version", Name, nullable=False, default=""),
    Column("labels", JSON, nullable=False),
    Column("cpu_milli_cores", BigInteger, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("slots", Integer, nullable=False),
    # RuntimeFacts by proto field name.
    Column("runtime", JSON, nullable=False),
    # [{type, message, blocks_placement, since_time}]
    Column("conditions", JSON, nullable=False),
    Column("draining", Boolean, nullable=False, default=False),
    # Since when, and when runs left are stopped; NULL = not at all.
    Column("drain_time", BigInteger),
    Column("drain_deadline_time", BigInteger),
    # When an operator took it off the list; NULL = it is on it. The row stays: attempts name it, and should it return
    # to a database without it, that would look like an older copy.
    Column("remove_time", BigInteger),
    Column("quarantine_reason", Text, nullable=False, default=""),
    # What the last Hello said: the cluster the agent belonged to, and the highest revision of it that it had seen.
    Column("hello_cluster_id", Name, nullable=False, server_default=text("''")),
    Column("hello_revision", BigInteger, nullable=False, server_default=text("0")),
    # The most that the agent can have been told of `revision`, fixed when a control plane takes over: what changes from
    # then on it hears on a new stream alone. NULL = all of it.
    Column("told_revision", BigInteger),
    # A foreign cluster that an operator lets the agent leave for this one; "" = none.
    Column("accepted_cluster_id", Name, nullable=False, server_default=text("''")),
    # Attempts of this revision or an older one may have begun, whatever is known of them: a restored database.
    Column("doubtful_revision", BigInteger, nullable=False, server_default=text("0")),
    Column("create_time", BigInteger, nullable=False),
    Column("connect_time", BigInteger, nullable=False),
    Column("last_seen_time", BigInteger, nullable=False),
    Column("message", Text, nullable=False, default=""),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Id, primary_key=True),
    # The id's hex digits backwards, so that a short id (its last digits) is an indexed prefix.
    Column("reversed_id", String(32), nullable=False, unique=True),
    Column("pipeline", Name, nullable=False),
    Column("state", Word, nullable=False),
    Column("reason", Word, nullable=False, default=""),
    Column("message", Text, nullable=False, default=""),
    Column("exit_code", Integer),
    # Number of the newest attempt; 0 before the first placement.
    Column("attempt", Integer, nullable=False),
    # Placements in a row that could not start; bounded by a setting, reset by a start.
    Column("failed_placements", Integer, nullable=False, default=0),
    Column("priority", Integer, nullable=False),
    Column("trigger", Name, nullable=False),
    Column("request_id", Name, nullable=False, default=""),
    Column("create_time", BigInteger, nullable=False),
    Column("queue_time", BigInteger, nullable=False),
    Column("start_time", BigInteger),
    Column("end_time", BigInteger),
    Column("cancel_time", BigInteger),
    Column("cpu_hard_milli_cores", BigInteger, nullable=False),
    Column("memory_hard_bytes", BigInteger, nullable=False),
    Column("cpu_soft_milli_cores", BigInteger, nullable=False),
    Column("memory_soft_bytes", BigInteger, nullable=False),
    Column("timeout_usec", BigInteger, nullable=False),
    Column("python_version", Word, nullable=False, default=""),
    Column("bundle_digest", Name, nullable=False),
    Column("bundle_size", BigInteger, nullable=False),
    Column("commit", ObjectId, nullable=False, default=""),
    Column("tree", ObjectId, nullable=False, default=""),
    Column("commit_author", Text, nullable=False, server_default=text("''")),
    Column("commit_subject", Text, nullable=False, server_default=text("''")),
    # Branch or commit that was asked for; "" = the newest code.
    Column("ref", Name, nullable=False, server_default=text("''")),
    # The run that this one repeats; NULL = none. `latest` = only its parameters.
    Column("rerun_of", Id),
    Column("rerun_latest", Boolean),
    # What the environment of a repeated run shall hold, "name==version" or "name @ address"; NULL = what resolves.
    Column("pinned_packages", JSON(none_as_null=True)),
    # Names given with --env; the values are sealed in run_parameters.
    Column("environment_names", JSON, nullable=False),
    # The pipeline's default_env as it was at creation: not secret, shown by `pipelines show` as well.
    Column("default_environment", JSON, nullable=False),
    Column("log_limit_bytes", BigInteger, nullable=False),
    Column("on_log_backlog", Word, nullable=False),
    # Endings after which the run is queued again, as states; how often at most. NULL = none.
    Column("retry_on", JSON(none_as_null=True)),
    Column("retry_attempts", Integer, nullable=False, server_default=text("0")),
    # Rises with each write; the etag.
    Column("version", BigInteger, nullable=False),
    Index("ix_runs_pipeline_id", "pipeline", "id"),
    Index(
        "ix_runs_live",
        "state",
        "id",
        sqlite_where=text("end_time IS NULL"),
        postgresql_where=text("end_time IS NULL"),
    ),
)

# Values of --env, sealed as one JSON object; gone with the run's retention.
run_parameters = Table(
    "run_parameters",
    metadata,
    Column("run_id", Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("run_id", Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("agent_id", Id, ForeignKey("agents.agent_id"), nullable=False),
    Column("claim_token", String(64), nullable=False),
    Column("state", Word, nullable=False),
    Column("reason", Word, nullable=False, default=""),
    Column("message", Text, nullable=False, default=""),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("slot", Word, nullable=False, default=""),
    Column("assign_time", BigInteger, nullable=False),
    Column("start_time", BigInteger),
    Column("end_time", BigInteger),
    # What the agent shall do: RUN, STOP or FORGET; stop_cause CANCEL, SUPERSEDED, DRAIN or "".
    Column("desired", Word, nullable=False),
    Column("stop_cause", Word, nullable=False, default=""),
    # Time from SIGTERM to SIGKILL; NULL = as the settings say.
    Column("stop_grace_usec", BigInteger),
    # agents.revision of the last change of what is desired.
    Column("revision", BigInteger, nullable=False),
    # Number of the last event stored.
    Column("known_seq", BigInteger, nullable=False, default=0),
    # Epochs of the last write: of the agent's session (0 = none yet) and of the control plane.
    Column("session_epoch", BigInteger, nullable=False, default=0),
    Column("leader_epoch", BigInteger, nullable=False),
    # True once the container is gone: only then its capacity is free.
    Column("released", Boolean, nullable=False, default=False),
    # Log bytes on disk at the last look, and whether the agent delivered the last one.
    Column("log_bytes", BigInteger, nullable=False, default=0),
    Column("log_sealed", Boolean, nullable=False, default=False),
    # When retention removed the log, and the setting that it followed; NULL and "" = the log is kept.
    Column("log_remove_time", BigInteger),
    Column("log_removed_by", Word, nullable=False, server_default=text("''")),
    Column("cpu_milli_cores", BigInteger, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    # Usage, OutOfMemory and Provenance by proto field name, numbers as numbers; NULL while unknown.
    Column("usage", JSON(none_as_null=True)),
    Column("out_of_memory", JSON(none_as_null=True)),
    Column("provenance", JSON(none_as_null=True)),
    # Secret name to version, fixed at assignment so that a re-delivery carries the same values.
    Column("secret_versions", JSON, nullable=False),
    Index("ix_attempts_agent_id_revision", "agent_id", "revision"),
    Index(
        "ix_attempts_unsettled",
        "agent_id",
        sqlite_where=text("desired <> 'FORGET'"),
        postgresql_where=text("desired <> 'FORGET'"),
    ),
    # Holds all that the sum of kept logs is made of.
    Index(
        "ix_attempts_kept_logs",
        "run_id",
        "number",
        "log_bytes",
        sqlite_where=text("log_remove_time IS NULL"),
        postgresql_where=text("log_remove_time IS NULL"),
    ),
)

# Files of logs that are to go: noted in the operation that removes the rows or says that the log is gone, and forgotten
# once the files are. `attempt` 0 = all of the run. Files that no row ever spoke of are left alone.
log_removals = Table(
    "log_removals",
    metadata,
    Column("run_id", Id, primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
)

# History: every event as it came, also those that were too late to change anything.
attempt_events = Table(
    "attempt_events",
    metadata,
    Column("run_id", Id, primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("time", BigInteger, nullable=False),
    Column("receive_time", BigInteger, nullable=False),
    Column("session_epoch", BigInteger, nullable=False),
    # Name of the fact in AttemptEvent ("state_changed", "ended", …), and the fact by proto field name.
    Column("kind", Word, nullable=False),
    Column("fact", JSON, nullable=False),
    # "" = applied; else the name of an EventRejection.
    Column("rejection", Word, nullable=False, default=""),
    ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"], ondelete="CASCADE"),
)

# Crossings of soft limits.
warnings = Table(
    "warnings",
    metadata,
    Column("run_id", Id, primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("crossing", Integer, primary_key=True, autoincrement=False),
    Column("kind", Word, nullable=False),
    Column("limit_value", BigInteger, nullable=False),
    Column("peak_value", BigInteger, nullable=False),
    Column("raise_time", BigInteger, nullable=False),
    Column("clear_time", BigInteger),
    Column("seconds_above", Float, nullable=False),
    ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"], ondelete="CASCADE"),
)

# Recorded losses of output. `origin` is "agent" (number = event sequence) or "controlplane" (number from 1).
log_losses = Table(
    "log_losses",
    metadata,
    Column("run_id", Id, primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("origin", Word, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Word, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("bytes", BigInteger),
    Column("time", BigInteger, nullable=False),
    Column("message", Text, nullable=False, default=""),
    ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"], ondelete="CASCADE"),
)

# One row per scope of a secret; pipeline "" = all pipelines, "sources/NAME" = a source. Deleting removes the row,
# versions stay while pinned.
secrets = Table(
    "secrets",
    metadata,
    Column("name", Name, primary_key=True),
    Column("pipeline", Name, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("masked", Boolean, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
)

# Versions count per name over all scopes and never repeat: (name, version) alone names a value.
secret_versions = Table(
    "secret_versions",
    metadata,
    Column("name", Name, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("pipeline", Name, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("create_time", BigInteger, nullable=False),
)

# Every sync of a source. Those by interval that had the outcome of the one before are counted in its row.
syncs = Table(
    "syncs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("source", Name, nullable=False),
    Column("trigger", Word, nullable=False),
    Column("start_time", BigInteger, nullable=False),
    Column("end_time", BigInteger, nullable=False),
    Column("from_commit", ObjectId, nullable=False, default=""),
    Column("to_commit", ObjectId, nullable=False, default=""),
    # Names of pipelines.
    Column("added", JSON, nullable=False),
    Column("changed", JSON, nullable=False),
    Column("removed", JSON, nullable=False),
    Column("invalid", JSON, nullable=False),
    # "" = it succeeded.
    Column("error", Text, nullable=False, default=""),
    Column("repeat_count", BigInteger, nullable=False, default=0),
    Index("ix_syncs_source_id", "source", "id"),
)

# Mutating calls that were answered: makes repeats safe. `fingerprint` is a SHA-256 of what was asked.
requests = Table(
    "requests",
    metadata,
    Column("kind", Word, primary_key=True),
    Column("request_id", Name, primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("answer_id", Name, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Index("ix_requests_create_time", "create_time"),
)
