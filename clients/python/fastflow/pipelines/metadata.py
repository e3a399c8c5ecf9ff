"""The metadata of a pipeline: what `pipeline.json` may say, and what is wrong with it.

All problems of a file are found at once. A file with an error gives no metadata at all: never a pipeline that runs
with limits nobody asked for.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastflow.pipelines import environment, sizes
from fastflow.pipelines.jsontext import JsonFault, JsonObject, parse_json
from fastflow.pipelines.original import REMEDIES
from fastflow.pipelines.problems import Problem, Severity, did_you_mean, error, errors, problem, warning

MIN_MEMORY_BYTES = 32 * 1024**2
"""Smallest memory limit. uv itself needs about 40 MB beside Python, so even this is for small programs only."""

MIN_CPU_MILLI_CORES = 10
"""Smallest CPU limit: a hundredth of a core."""

MAX_CPU_CORES = 1_000_000
MAX_TIMEOUT_SECONDS = 315_576_000_000
"""Longest time limit: what google.protobuf.Duration can hold."""

MAX_RETRY_ATTEMPTS = 100
"""Most retries a pipeline may ask for: what fails more often needs a person."""

DEFAULT_RETRY_ATTEMPTS = 3
"""Retries of a pipeline that names what is retried and not how often: worker hosts that are lost one after another have
a common cause."""

RETRIED_ENDINGS = ("lost",)
"""What `retry_on` may name."""

MAX_METADATA_BYTES = 256 * 1024
"""Largest metadata file; a larger *.json is somebody's data."""

FIELDS = (
    "cpu_hard_limit",
    "mem_hard_limit",
    "cpu_soft_limit",
    "mem_soft_limit",
    "timeout",
    "on_log_backlog",
    "python_version",
    "default_env",
    "retry_on",
    "retry_attempts",
    "enabled",
    "description",
    "tags",
)
"""Every field that is read."""

LIMIT_FIELDS = FIELDS[:4]

UNSUPPORTED_FIELDS = frozenset(REMEDIES)
"""Fields of the original Fast-Flow that are not built yet: told, not refused."""

_PYTHON_VERSION = re.compile(r"3\.(0|[1-9][0-9]?)(\.(0|[1-9][0-9]{0,2}))?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LAYOUT = dict.fromkeys(map(ord, "\t\r\n"))
_BACKLOG_POLICIES = ("drop", "pause")
_MAX_TAGS = 100
_MAX_TAG_LENGTH = 100


@dataclass(frozen=True)
class Limits:
    """Limits of one run: CPU in thousandths of a core, memory in bytes; a soft limit of 0 is none."""

    cpu_hard_milli_cores: int
    memory_hard_bytes: int
    cpu_soft_milli_cores: int = 0
    memory_soft_bytes: int = 0


STANDARD_LIMITS = Limits(cpu_hard_milli_cores=1000, memory_hard_bytes=1024**3)
"""Hard limits where neither the pipeline nor the control plane's settings name any."""


@dataclass(frozen=True)
class Metadata:
    """What is known of a pipeline besides its code. `limits` are those in force, defaults applied.

    `timeout_seconds` counts from release, 0 = none; `python_version` is "3.11" or "3.11.4", "" = the image's own.
    A run that ended as one of `retry_on` says, in small letters, is started again, `retry_attempts` times at most.
    `enabled` = false refuses triggers, not runs by hand. `on_log_backlog` is "drop" or "pause": what becomes of output
    that its worker can neither deliver nor keep.
    """

    limits: Limits
    timeout_seconds: float = 0.0
    on_log_backlog: str = "drop"
    python_version: str = ""
    default_environment: Mapping[str, str] = field(default_factory=dict)
    retry_on: tuple[str, ...] = ()
    retry_attempts: int = 0
    enabled: bool = True
    description: str = ""
    tags: tuple[str, ...] = ()


def read_metadata(data: bytes, file: str, defaults: Limits | None) -> tuple[Metadata | None, list[Problem]]:
    """Reads the metadata file `file` with content `data`; the metadata is None where a problem is an error.

    `defaults` gives the hard limits of a pipeline that names none. None = nobody knows them here: STANDARD_LIMITS are
    assumed, and a soft limit above them is a warning instead of an error.
    """
    if len(data) > MAX_METADATA_BYTES:
        return None, [error(file, f"has {len(data)} bytes; metadata has at most {MAX_METADATA_BYTES}")]
    try:
        document = parse_json(data)
    except JsonFault as fault:
        return None, [error(file, f"is not valid JSON: {fault}")]
    if not isinstance(document, JsonObject):
        return None, [error(file, f"holds {_kind(document)}; metadata is an object: {{ … }}")]
    reader = _Reader(document, file)
    metadata = reader.read(defaults or STANDARD_LIMITS, defaults_known=defaults is not None)
    return (None if errors(reader.problems) else metadata), reader.problems


def without_metadata(defaults: Limits | None) -> Metadata:
    """Returns the metadata of a pipeline that has no metadata file."""
    return Metadata(limits=defaults or STANDARD_LIMITS)


def matches_python(wanted: str, version: str) -> bool:
    """Tells whether an interpreter of `version` is what `python_version` asks for: "3.11" means any 3.11.x."""
    return version == wanted or version.startswith(wanted + ".")


class _Reader:
    """Reads one object field by field. A field that is absent or wrong reads as None; what is wrong is noted."""

    def __init__(self, document: JsonObject, file: str) -> None:
        self._document = document
        self._file = file
        self.problems: list[Problem] = []

    def read(self, defaults: Limits, defaults_known: bool) -> Metadata:
        self._check_keys()
        limits = self._limits(defaults, defaults_known)
        retry_on = self._retry_on()
        return Metadata(
            limits=limits,
            timeout_seconds=self._timeout(),
            on_log_backlog=self._on_log_backlog(),
            python_version=self._python_version(),
            default_environment=self._default_environment(),
            retry_on=retry_on,
            retry_attempts=self._retry_attempts(retry_on),
            enabled=self._enabled(),
            description=self._text("description") or "",
            tags=self._tags(),
        )

    def _check_keys(self) -> None:
        for key in self._document.duplicates:
            self._refuse(key, "is written more than once; keep one")
        for key in self._document:
            if key in UNSUPPORTED_FIELDS:
                self.problems.append(
                    warning(self._file, f"is not supported yet and has no effect; {REMEDIES[key]}", key)
                )
            elif key not in FIELDS:
                guess = did_you_mean(key, FIELDS) or f"; there are: {', '.join(FIELDS)}"
                self._refuse(key, f"is not a field of the metadata{guess}")

    def _limits(self, defaults: Limits, defaults_known: bool) -> Limits:
        cpu_hard, cpu_soft = self._cpu("cpu_hard_limit"), self._cpu("cpu_soft_limit")
        memory_hard, memory_soft = self._memory("mem_hard_limit"), self._memory("mem_soft_limit")
        limits = Limits(
            cpu_hard_milli_cores=defaults.cpu_hard_milli_cores if cpu_hard is None else cpu_hard,
            memory_hard_bytes=defaults.memory_hard_bytes if memory_hard is None else memory_hard,
            cpu_soft_milli_cores=cpu_soft or 0,
            memory_soft_bytes=memory_soft or 0,
        )
        for soft_name, soft, hard_name, hard, shown in (
            ("cpu_soft_limit", cpu_soft, "cpu_hard_limit", limits.cpu_hard_milli_cores, _cores),
            ("mem_soft_limit", memory_soft, "mem_hard_limit", limits.memory_hard_bytes, sizes.format_size),
        ):
            declared = hard_name in self._document
            if soft is None or soft <= hard or (declared and self._has_error(hard_name)):
                continue
            whose = hard_name if declared else f"the default for {hard_name}, which is not set,"
            message = (
                f"{self._shown(soft_name)} is above {whose} of {shown(hard)}: it could never warn; allowed is less"
            )
            severity = Severity.ERROR if declared or defaults_known else Severity.WARNING
            self.problems.append(problem(severity, self._file, message, soft_name))
        return limits

    def _cpu(self, name: str) -> int | None:
        allowed = "a number of cores from 0.01, such as 0.5 or 2"
        value = self._number(name, allowed)
        if value is None:
            return None
        if value < MIN_CPU_MILLI_CORES / 1000 or value > MAX_CPU_CORES:
            what = "is too large" if value > 0 and value > MAX_CPU_CORES else "is below the minimum"
            self._refuse(name, f"{self._shown(name)} {what}; allowed is {allowed}{_none_hint(name)}")
            return None
        return round(value * 1000)

    def _memory(self, name: str) -> int | None:
        if name not in self._document:
            return None
        value = self._document[name]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        try:
            size = sizes.parse_size(value)
        except ValueError as fault:
            self._refuse(name, f"{self._shown(name)} {fault}{_none_hint(name) if value is None else ''}")
            return None
        if size < MIN_MEMORY_BYTES:
            least = sizes.format_size(MIN_MEMORY_BYTES)
            unit = "; a number without a unit is bytes" if str(value).strip().isdecimal() else ""
            self._refuse(name, f"{self._shown(name)} is below the minimum of {least}{unit}{_none_hint(name)}")
            return None
        return size

    def _timeout(self) -> float:
        allowed = "a number of seconds, 0 for none"
        value = self._number("timeout", allowed)
        if value is not None and not 0 <= value <= MAX_TIMEOUT_SECONDS:
            what = "is negative" if value < 0 else f"is above the largest, {MAX_TIMEOUT_SECONDS}"
            self._refuse("timeout", f"{self._shown('timeout')} {what}; allowed is {allowed}")
        return float(value or 0)

    def _on_log_backlog(self) -> str:
        allowed = " or ".join(f'"{policy}"' for policy in _BACKLOG_POLICIES)
        value = self._text("on_log_backlog", allowed)
        if value is not None and value not in _BACKLOG_POLICIES:
            self._refuse("on_log_backlog", f"{self._shown('on_log_backlog')} is unknown; allowed is {allowed}")
            return "drop"
        return value or "drop"

    def _python_version(self) -> str:
        allowed = 'text such as "3.11"'
        if isinstance(self._document.get("python_version"), int | float):
            self._refuse(
                "python_version", f"{self._shown('python_version')} is a number; allowed is {allowed}, in quotes"
            )
            return ""
        value = self._text("python_version")
        if value is not None and not _PYTHON_VERSION.fullmatch(value):
            self._refuse("python_version", f"{self._shown('python_version')} is not a version; allowed is {allowed}")
        return value or ""

    def _default_environment(self) -> Mapping[str, str]:
        name = "default_env"
        value = self._document.get(name, JsonObject([]))
        if not isinstance(value, JsonObject):
            self._refuse(
                name, f'{self._shown(name)} is {_kind(value)}; allowed is an object of texts: {{"NAME": "value"}}'
            )
            return {}
        for key in value.duplicates:
            self._refuse(f"{name}.{key}", "is written more than once; keep one")
        for key, item in value.items():
            if not isinstance(item, str):
                self._refuse(f"{name}.{key}", f"is {_kind(item)}; allowed is text: put it into quotes")
        texts = {key: item for key, item in value.items() if isinstance(item, str)}
        for fault in environment.faults(texts):
            self._refuse(f"{name}.{fault.variable}", str(fault))
        return texts

    def _retry_on(self) -> tuple[str, ...]:
        value = self._document.get("retry_on", [])
        allowed = f"a list of {', '.join(map(json.dumps, RETRIED_ENDINGS))}"
        if not isinstance(value, list):
            self._refuse("retry_on", f"{self._shown('retry_on')} is {_kind(value)}; allowed is {allowed}")
            return ()
        for ending in value:
            if ending not in RETRIED_ENDINGS:
                self._refuse("retry_on", f"{_excerpt(ending)} is nothing that can be retried; allowed is {allowed}")
                return ()
        return tuple(dict.fromkeys(value))

    def _retry_attempts(self, retry_on: tuple[str, ...]) -> int:
        """How often at most, 0 = never; it counts for nothing where no ending is retried."""
        name = "retry_attempts"
        allowed = f"a whole number from 0 to {MAX_RETRY_ATTEMPTS}"
        value = self._number(name, allowed)
        if value is None:
            return DEFAULT_RETRY_ATTEMPTS if retry_on else 0
        if value != int(value) or not 0 <= value <= MAX_RETRY_ATTEMPTS:
            self._refuse(name, f"{self._shown(name)} is out of range; allowed is {allowed}")
            return 0
        if value and "retry_on" not in self._document:
            message = (
                'has no effect without `"retry_on": ["lost"]`, which starts a run again whose worker host was lost; '
                "a failed run stays FAILED: start it again with `ffctl run`"
            )
            self.problems.append(warning(self._file, message, name))
        return int(value) if retry_on else 0

    def _enabled(self) -> bool:
        value = self._document.get("enabled", True)
        if not isinstance(value, bool):
            self._refuse("enabled", f"{self._shown('enabled')} is {_kind(value)}; allowed is true or false")
            return True
        return value

    def _tags(self) -> tuple[str, ...]:
        value = self._document.get("tags", [])
        allowed = f"a list of at most {_MAX_TAGS} texts of 1 to {_MAX_TAG_LENGTH} printable characters"
        if not isinstance(value, list) or len(value) > _MAX_TAGS:
            self._refuse("tags", f"{self._shown('tags')} is {_kind(value)}; allowed is {allowed}")
            return ()
        for tag in value:
            if not isinstance(tag, str) or not 1 <= len(tag) <= _MAX_TAG_LENGTH or not _printable(tag):
                self._refuse("tags", f"{_excerpt(tag)} is no tag; allowed is {allowed}")
                return ()
        return tuple(dict.fromkeys(value))

    def _text(self, name: str, allowed: str = "text") -> str | None:
        if name not in self._document:
            return None
        value = self._document[name]
        if not isinstance(value, str):
            self._refuse(name, f"{self._shown(name)} is {_kind(value)}; allowed is {allowed}, in quotes")
            return None
        if not _printable(value.translate(_LAYOUT)):
            self._refuse(name, "holds a character that can not be shown; allowed is text of lines")
            return None
        return value

    def _number(self, name: str, allowed: str) -> float | None:
        if name not in self._document:
            return None
        value = self._document[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            unquoted = ", without quotes" if isinstance(value, str) else ""
            self._refuse(
                name, f"{self._shown(name)} is {_kind(value)}; allowed is {allowed}{unquoted}{_none_hint(name)}"
            )
            return None
        if not math.isfinite(value):
            self._refuse(name, f"{self._shown(name)} is no finite number; allowed is {allowed}")
            return None
        return value

    def _refuse(self, name: str, message: str) -> None:
        self.problems.append(error(self._file, message, _visible(name)))

    def _has_error(self, name: str) -> bool:
        return any(problem.field == name for problem in errors(self.problems))

    def _shown(self, name: str) -> str:
        return _excerpt(self._document[name])


def _none_hint(name: str) -> str:
    return "; for none leave the field out" if name in ("cpu_soft_limit", "mem_soft_limit") else ""


def _cores(milli_cores: int) -> str:
    return f"{milli_cores / 1000:g} cores"


def _kind(value: Any) -> str:
    for kind, name in ((bool, "true or false"), (str, "text"), (int | float, "a number"), (list, "a list")):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "an object"


def _excerpt(value: Any) -> str:
    if isinstance(value, list | dict):
        return "[…]" if isinstance(value, list) else "{…}"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _visible(name: str) -> str:
    """`name` as it may be printed and sent: keys are whatever the file holds."""
    return name if len(name) <= 120 and _printable(name) else repr(name[:120])


def _printable(text: str) -> bool:
    return _encodable(text) and not _CONTROL.search(text)


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
