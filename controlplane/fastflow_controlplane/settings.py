"""Every knob of the control plane, once, with its unit and its reason."""

from pathlib import Path
from typing import Self

from fastflow.addresses import is_loopback
from fastflow.pipelines.code import CODE_LIMIT
from fastflow.pipelines.metadata import MIN_CPU_MILLI_CORES, MIN_MEMORY_BYTES, Limits
from fastflow.pipelines.sizes import parse_size
from fastflow.service.settings import ServiceSettings
from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator

from fastflow_controlplane.sources.settings import SourceSettings


class ControlPlaneSettings(ServiceSettings):
    """Settings of `fastflow-controlplane`; times are seconds."""

    listen: str = Field(
        default="127.0.0.1:7233",
        description="Address and port for clients and agents. Other addresses than loopback need allow_remote and "
        "token; port 0 takes a free one.",
    )
    allow_remote: bool = Field(
        default=False, description="Allow a listen address that other machines reach. The connection is not encrypted."
    )
    token: SecretStr | None = Field(
        default=None, description="Shared token that every client and agent must send. Needed with allow_remote."
    )
    data_dir: Path = Field(
        default=Path(".fastflow/controlplane"),
        description="Folder for the database, logs, bundles and the key that seals secrets. Back it up as a whole.",
    )
    database_url: SecretStr = Field(
        default=SecretStr(""),
        description="Database URL (sqlite or postgresql), which may hold a password; empty = an SQLite file in "
        "data_dir.",
    )
    pipelines_dir: Path = Field(
        default=Path("pipelines"), description="Folder whose subfolders with a main.py are the pipelines. Only read."
    )
    pipelines_interval: float = Field(
        default=10.0,
        gt=0,
        description="The pipelines folder is looked at this often, besides whenever a run is made or pipelines are "
        "listed; costs one stat per file.",
    )
    sources: tuple[SourceSettings, ...] = Field(
        default=(),
        description="Where pipelines come from, in place of pipelines_dir: Git repositories and plain folders. In TOML "
        "[[sources]] with name and folder, or name, url, branch (empty = the default one), path (the folder that holds "
        "the pipelines) and, for ssh, known_hosts. Credentials are secrets, never here.",
    )
    sync_interval: float = Field(
        default=60.0,
        gt=0,
        description="Git sources are synced this often: new code runs within this time without a push hook; costs one "
        "request where nothing changed.",
    )
    sync_timeout: float = Field(
        default=600.0,
        gt=0,
        description="A fetch that takes longer is ended, and what it brought may take as long again to be read; the "
        "first sync of a large source takes longest.",
    )
    ca_bundle: Path | None = Field(
        default=None,
        description="File of the certificate authorities that Git servers are checked with; not set = the system's.",
    )
    uv_pre_heat: bool = Field(
        default=True,
        validation_alias=AliasChoices("FASTFLOW_UV_PRE_HEAT", "UV_PRE_HEAT", "uv_pre_heat"),
        description="Agents prepare the packages of new and changed pipelines ahead, so that the first run starts as "
        "fast as any, and requirements that can not be met are seen before it. UV_PRE_HEAT sets it too.",
    )
    default_cpu_hard_limit: float = Field(
        default=1.0,
        ge=MIN_CPU_MILLI_CORES / 1000,
        description="Cores for a pipeline whose metadata sets no cpu_hard_limit.",
    )
    default_mem_hard_limit: str = Field(
        default="1g",
        description="Memory for a pipeline whose metadata sets no mem_hard_limit, for example 512m or 1.5g.",
    )
    code_limit: str = Field(
        default=CODE_LIMIT,
        description="A pipeline with more code is INVALID: each agent that runs it keeps a copy.",
    )
    heartbeat_interval: float = Field(
        default=5.0, gt=0, description="Agents say this often that they live; told to them when they connect."
    )
    suspect_after: int = Field(
        default=3, ge=1, description="An agent that missed this many heartbeats is SUSPECT and gets no new runs."
    )
    silent_after: int = Field(
        default=4, ge=1, description="An agent that missed this many heartbeats on an open stream is OFFLINE."
    )
    offline_after: float = Field(
        default=10.0,
        ge=0,
        description="An agent whose stream broke is OFFLINE after this long: enough for a restart of the agent.",
    )
    lost_after: float = Field(
        default=60.0,
        ge=0,
        description="Runs of an agent that is OFFLINE for this long more are LOST: longer than a host's reboot of "
        "its network, short enough that somebody learns of it.",
    )
    recovery_window: float = Field(
        default=60.0,
        ge=0,
        description="After its own start, and after a time in which it stood still or could not write, the control "
        "plane declares no run LOST for this long, so that all agents can return first.",
    )
    orphan_grace: float = Field(
        default=300.0,
        ge=0,
        description="Agents leave an attempt that the control plane does not know alive for this long: absence from "
        "a database kills nothing at once.",
    )
    stop_grace: float = Field(
        default=10.0, ge=0, description="Time between SIGTERM and SIGKILL when a run is stopped; Docker's own default."
    )
    queue_deadline: float = Field(
        default=0.0,
        ge=0,
        description="A run that waits in the queue for longer FAILS; 0 = it may wait for ever. Time in which the "
        "control plane or its database was away does not count.",
    )
    max_placements: int = Field(
        default=5, ge=1, description="A run that could not be started on this many placements in a row FAILS."
    )
    placement_delay: float = Field(
        default=5.0,
        ge=0,
        description="An agent that could not start a run gets the same run again after this long, and after twice "
        "as long the second time; other agents get it at once.",
    )
    priority_aging: float = Field(
        default=300.0,
        gt=0,
        description="A run that waits gains one step of priority per this time, so that none starves.",
    )
    log_limit: str = Field(
        default="1g", description="Output that is kept of one attempt; more is not stored, and the run says so."
    )

    run_max_age: float = Field(
        default=90 * 24 * 3600.0,
        ge=0,
        description="Runs and their logs are removed this long after their end: a quarter, for who looks back. 0 = "
        "never. The newest run of a pipeline always stays.",
    )
    run_max_count: int = Field(
        default=10_000,
        ge=0,
        description="So many runs are kept of each pipeline, the newest: a week of one per minute, some 100 MB of "
        "database. 0 = all.",
    )
    log_max_total: str = Field(
        default="20g",
        description="Output kept of all runs together; beyond it the logs of the oldest runs are removed, the runs "
        "stay. Leave the disk of data_dir more than this. 0 = no limit.",
    )
    retention_interval: float = Field(
        default=60.0,
        gt=0,
        description="What need not be kept any longer is looked for this often; costs a query per pipeline.",
    )

    @field_validator("default_mem_hard_limit", "code_limit", "log_limit", "log_max_total")
    @classmethod
    def _is_a_size(cls, value: str) -> str:
        parse_size(value)
        return value

    @field_validator("sources")
    @classmethod
    def _have_names_of_their_own(cls, value: tuple[SourceSettings, ...]) -> tuple[SourceSettings, ...]:
        names = [source.name for source in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources have the name {name}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        host, _ = self.address
        if not is_loopback(host) and not (self.allow_remote and self.token and self.token.get_secret_value()):
            raise ValueError(
                f"listen = {self.listen} can be reached from other machines: set allow_remote = true and a token, "
                "or listen on 127.0.0.1"
            )
        if self.default_limits.memory_hard_bytes < MIN_MEMORY_BYTES:
            raise ValueError(f"default_mem_hard_limit = {self.default_mem_hard_limit} is below the minimum of 32m")
        if self.silent_after < self.suspect_after:
            raise ValueError(
                f"silent_after = {self.silent_after} must not be below suspect_after = {self.suspect_after}"
            )
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on. Raises ValueError where `listen` is no "host:port"."""
        host, colon, port = self.listen.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f'listen = {self.listen} is no "host:port", for example 127.0.0.1:7233 or [::1]:7233')
        return host.removeprefix("[").removesuffix("]"), int(port)

    @property
    def all_sources(self) -> tuple[SourceSettings, ...]:
        """Sources in force: those named, else the one folder `pipelines_dir`."""
        return self.sources or (SourceSettings(name="pipelines", folder=self.pipelines_dir),)

    @property
    def database(self) -> str:
        """Database URL in force."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_dir.absolute() / 'fastflow.db'}"

    @property
    def default_limits(self) -> Limits:
        """Hard limits of pipelines that set none."""
        return Limits(
            cpu_hard_milli_cores=round(self.default_cpu_hard_limit * 1000),
            memory_hard_bytes=parse_size(self.default_mem_hard_limit),
        )

    @property
    def max_code_bytes(self) -> int:
        """Bytes that all files of a pipeline may have together."""
        return parse_size(self.code_limit)

    @property
    def log_limit_bytes(self) -> int:
        """Bytes of output kept of one attempt."""
        return parse_size(self.log_limit)

    @property
    def log_max_total_bytes(self) -> int:
        """Bytes of output kept of all runs; 0 = no limit."""
        return parse_size(self.log_max_total)
