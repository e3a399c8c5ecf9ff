"""Settings of the long-running programs: one class per program, each value from the first place that has it.

Order: environment (`FASTFLOW_…`), then the TOML file named by `--config` or `FASTFLOW_CONFIG`, then the default.
"""

import json
import os
import re
import tomllib
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableVariable

from fastflow.variables import PREFIX

CONFIG_VARIABLE = "FASTFLOW_CONFIG"

_LOGIN = re.compile(r"://\S*@")
"""Rather too much than a part of a password that holds characters an address can not."""


_PLAIN = {
    "extra_forbidden": "there is no such setting",
    "tuple_type": "a list is expected: [ … , … ]",
    "bool_parsing": "true or false is expected",
    "missing": "is not there, and must be",
}
"""What pydantic says for programmers, by its name for the fault."""


class SettingsError(Exception):
    """A setting is unknown or has a value that is not allowed; the message names it and says what is."""


class SecretUrl(SecretStr):
    """One address or several, separated by white space; shown without the logins in them."""

    def _display(self) -> str:
        return _LOGIN.sub("://***@", self._secret_value)


class ServiceSettings(BaseSettings):
    """Base of a program's settings. Each field's `description` is its line in `--help`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least important messages that are logged."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Puts the environment before the file, whose values arrive as init arguments."""
        return env_settings, init_settings

    @classmethod
    def load(cls, config: Path | None = None) -> Self:
        """Reads the settings. `config` is a TOML file of top-level keys named as the fields.

        Raises SettingsError for a file that can not be read, an unknown key or a value that is not allowed.
        """
        if config is None and CONFIG_VARIABLE in os.environ:
            config = Path(os.environ[CONFIG_VARIABLE])
        values = _read(config, set(cls.model_fields)) if config else {}
        try:
            return cls(**values)
        except ValidationError as error:
            raise SettingsError(_explain(error, values)) from None
        except UnreadableVariable as error:
            # Its message has the name alone, in a sentence for programmers; what it comes from has the value.
            named = re.search(r'field "(\w+)"', str(error))
            name = named[1] if named else ""
            raise SettingsError(f"setting {name} ({PREFIX}{name.upper()}): is no valid JSON") from None

    @classmethod
    def describe(cls, names: Collection[str] = ()) -> str:
        """Returns one paragraph per setting, for `--help`: variable, kind, default, meaning; of all, or of `names`."""
        fields = ((name, field) for name, field in cls.model_fields.items() if not names or name in names)
        return "\n\n".join(_describe(name, field) for name, field in fields)

    def print_config(self) -> str:
        """Returns the settings in force as TOML; secret values are shown as asterisks."""
        values = ((name, getattr(self, name)) for name in type(self).model_fields)
        return "\n".join(
            f"# {name} is not set" if value is None else f"{name} = {_toml(value)}" for name, value in values
        )


def _read(config: Path, known: set[str]) -> dict[str, Any]:
    try:
        values = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config}: can not be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{config}: is not valid TOML: {error}") from None
    for name in values:
        if name not in known:
            raise SettingsError(f"{config}: unknown setting {name!r}; there are: {', '.join(sorted(known))}")
    return values


def _explain(error: ValidationError, file: Mapping[str, Any]) -> str:
    lines = []
    for problem in error.errors():
        # The value of a secret setting must not reach a log; pydantic hides it only in the parsed field.
        message = _PLAIN.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        names = []
        if problem["loc"]:
            # A setting that has a second variable is located by its first, not by its name.
            name = str(problem["loc"][0]).removeprefix(PREFIX).lower()
            path = _path(name, problem["loc"][1:], _given(name, file))
            names = [f"setting {path} ({PREFIX}{name.upper()}): "]
        lines.append("".join([*names, message]))
    return "\n".join(lines)


def _given(name: str, file: Mapping[str, Any]) -> Any:
    """What was given for a setting, as it was read: the environment goes before the `file`."""
    variables = {variable.upper(): text for variable, text in os.environ.items() if text}
    text = variables.get(f"{PREFIX}{name.upper()}")
    if text is None:
        return file.get(name)
    try:
        return json.loads(text)
    except ValueError:
        return text


def _path(name: str, location: Sequence[int | str], value: Any) -> str:
    """Returns 'sources["flows"].url', or "sources[1].url", counted from 0, where the item of `value` has no name."""
    parts = [name]
    for part in location:
        try:
            value = value[part]
        except (LookupError, TypeError):
            value = None
        named = value.get("name") if isinstance(value, dict) else None
        label = f'"{named}"' if isinstance(named, str) and named and named.isprintable() else part
        parts.append(f"[{label}]" if isinstance(part, int) else f".{part}")
    return "".join(parts)


def _describe(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"default: {_default(field)}"
    return f"{PREFIX}{name.upper()} ({_kind(field.annotation)}; {default})\n    {field.description}"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "not set" if value is None else _toml(value)


def _kind(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    arguments = [argument for argument in typing.get_args(annotation) if argument is not types.NoneType]
    if origin is typing.Literal:
        return " or ".join(str(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType) and arguments:
        return _kind(arguments[0])
    if origin is dict:
        return "JSON object"
    if origin is tuple:
        return "JSON list"
    names = {
        str: "text",
        int: "integer",
        float: "number",
        bool: "true or false",
        Path: "path",
        SecretStr: "secret",
        SecretUrl: "address",
    }
    return names.get(annotation, getattr(annotation, "__name__", "value"))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, BaseModel):
        return _toml(value.model_dump(exclude_defaults=True))
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
