"""Settings: where a value comes from, and what a wrong one is answered with."""

from pathlib import Path

import pytest
from fastflow.service.settings import ServiceSettings, SettingsError
from pydantic import Field, SecretStr


class Example(ServiceSettings):
    """Settings of an example program."""

    slots: int = Field(default=2, ge=1, description="How many at once.")
    token: SecretStr | None = Field(default=None, description="Shared token.")
    folder: Path = Field(default=Path("here"), description="Where.")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "example.toml"


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text('slots = 3\nfolder = "file"\n')
    monkeypatch.setenv("FASTFLOW_SLOTS", "5")
    settings = Example.load(config)
    assert settings.slots == 5
    assert settings.folder == Path("file")
    assert settings.token is None


def test_an_unknown_key_in_the_file_is_named_with_the_known_ones(config: Path) -> None:
    config.write_text("slot = 3\n")
    with pytest.raises(SettingsError, match=r"unknown setting 'slot'.*slots"):
        Example.load(config)


def test_a_wrong_value_names_the_setting_and_its_variable(config: Path) -> None:
    config.write_text("slots = 0\n")
    with pytest.raises(SettingsError, match=r"setting slots \(FASTFLOW_SLOTS\): .*greater than or equal to 1"):
        Example.load(config)


def test_a_broken_file_is_named(config: Path) -> None:
    config.write_text("slots = \n")
    with pytest.raises(SettingsError, match=r"example\.toml: is not valid TOML"):
        Example.load(config)


def test_help_explains_every_setting() -> None:
    text = Example.describe()
    assert "FASTFLOW_SLOTS (integer; default: 2)\n    How many at once." in text
    assert "FASTFLOW_TOKEN (secret; default: not set)" in text


def test_a_secret_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFLOW_TOKEN", "open-sesame")
    settings = Example.load()
    assert "open-sesame" not in settings.print_config()
    assert 'token = "**********"' in settings.print_config()


def test_the_printed_configuration_can_be_read_back(config: Path) -> None:
    config.write_text(Example(slots=7).print_config())
    assert Example.load(config) == Example(slots=7)
