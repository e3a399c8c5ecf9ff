"""Which environment variables a pipeline, a secret or a run may set.

One set of rules for `default_env`, secrets and `ffctl run --env`; precedence is in that order, the last one wins.
"""

import re
from collections.abc import Iterable, Mapping

MAX_NAME_LENGTH = 255
"""Longest name, in characters."""

MAX_VALUE_BYTES = 64 * 1024
"""Longest value, in UTF-8 bytes: Linux refuses to start a program with a variable of 128 KiB (MAX_ARG_STRLEN)."""

MAX_ENVIRONMENT_BYTES = 1024 * 1024
"""Most for one set of variables, names and values: Linux refuses 2 MiB of arguments and environment by default."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_SHELL = "ENV, IFS, OPTIND, PATH, PPID, PWD belong to the shell that starts the program"

_INDEX = (
    "a run's packages are installed before its variables are known, so the package index is set elsewhere: "
    "FASTFLOW_INDEX_URL on the agents, or [[tool.uv.index]] in the script header (PEP 723) of main.py"
)

_RESERVED = {
    **dict.fromkeys(("ENV", "IFS", "OPTIND", "PATH", "PPID", "PWD"), _SHELL),
    "UV_CACHE_DIR": "the place of uv's cache is set by Fast-Flow",
    "UV_CONFIG_FILE": "uv reads no configuration files in runs",
    "UV_WORKING_DIR": "uv runs in the pipeline's own folder",
    "UV_WORKING_DIRECTORY": "uv runs in the pipeline's own folder",
    "UV_DEFAULT_INDEX": _INDEX,
    "UV_EXTRA_INDEX_URL": _INDEX,
    "UV_FIND_LINKS": _INDEX,
}

_RESERVED_PREFIXES = {
    "FASTFLOW_": "names that begin with FASTFLOW_ belong to Fast-Flow",
    "UV_PYTHON": "names that begin with UV_PYTHON choose the interpreter: use python_version in pipeline.json",
    "UV_NO_": "names that begin with UV_NO_ are set by Fast-Flow for uv",
    "UV_INDEX": _INDEX,
    "UV_EXCLUDE_NEWER": "a run's packages are installed before its variables are known: name exact versions instead",
}


class InvalidVariable(ValueError):
    """A variable is refused. `variable` is its name, `rule` what is allowed; never its value."""

    def __init__(self, variable: str, rule: str) -> None:
        super().__init__(f"environment variable {_shown(variable)}: {rule}")
        self.variable = variable
        self.rule = rule


def check_name(name: str) -> None:
    """Raises InvalidVariable where `name` may not be set."""
    if not _NAME.fullmatch(name):
        raise InvalidVariable(
            name, "a name is made of ASCII letters, digits and _, and begins with no digit ([A-Za-z_][A-Za-z0-9_]*)"
        )
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidVariable(name, f"a name has at most {MAX_NAME_LENGTH} characters, this one has {len(name)}")
    if name in _RESERVED:
        raise InvalidVariable(name, _RESERVED[name])
    for prefix, rule in _RESERVED_PREFIXES.items():
        if name.startswith(prefix):
            raise InvalidVariable(name, rule)


def check_value(name: str, value: str) -> None:
    """Raises InvalidVariable where the variable `name` can not have this value. The error does not hold the value."""
    if "\0" in value:
        raise InvalidVariable(name, "a value can not hold a NUL character")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidVariable(name, "a value is Unicode text, this one holds half of a surrogate pair") from None
    if size > MAX_VALUE_BYTES:
        raise InvalidVariable(name, f"a value has at most {MAX_VALUE_BYTES} bytes, this one has {size}")


def read_assignments(assignments: Iterable[str], own: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables of "K=V" and "K", which takes its value from `own`. Raises ValueError, without any value.

    Whether the names may be set is for `faults` to say.
    """
    variables = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not name:
            raise ValueError(f'"{assignment}" names no variable; write K=V')
        if not separator:
            if name not in own:
                raise ValueError(f"{name} is not set in your environment; write {name}=VALUE")
            value = own[name]
        variables[name] = value
    return variables


def read_environment_file(data: bytes, own: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables of a file of lines "K=V" or "K"; empty lines and lines that begin with # say nothing.

    A value is the rest of its line as it stands, quotes included, as in Docker's --env-file. Raises ValueError with
    the number of the line.
    """
    variables: dict[str, str] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise ValueError(f"line {number} is not UTF-8; save the file as UTF-8") from None
        name, separator, _ = text.partition("=")
        try:
            check_name(name)
            variables |= read_assignments([text], own)
        except InvalidVariable as fault:
            # What stands before a forgotten "=" may be a secret.
            raise ValueError(f"line {number}: {fault.rule if separator else 'write K=V'}") from None
        except ValueError as fault:
            raise ValueError(f"line {number}: {fault}") from None
    return variables


def faults(environment: Mapping[str, str]) -> list[InvalidVariable]:
    """Returns one error per variable that is refused, in the order of the variables; empty = all may be set."""
    found: list[InvalidVariable] = []
    size = 0
    for name, value in environment.items():
        try:
            check_name(name)
            check_value(name, value)
        except InvalidVariable as fault:
            found.append(fault)
            continue
        size += len(name) + len(value.encode()) + 2
        if size > MAX_ENVIRONMENT_BYTES:
            rule = f"all variables together have at most {MAX_ENVIRONMENT_BYTES} bytes"
            return [*found, InvalidVariable(name, rule)]
    return found


def _shown(name: str) -> str:
    return name if _NAME.fullmatch(name) and len(name) <= MAX_NAME_LENGTH else repr(name[:80])
