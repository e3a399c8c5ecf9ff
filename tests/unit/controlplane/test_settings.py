"""What the control plane's settings allow and refuse."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fastflow.service.settings import SettingsError
from fastflow_controlplane.__main__ import main
from fastflow_controlplane.settings import ControlPlaneSettings


def load(tmp_path: Path, **settings: Any) -> ControlPlaneSettings:
    file = tmp_path / "settings.toml"
    file.write_text("".join(f"{name} = {value!r}\n".replace("True", "true") for name, value in settings.items()))
    return ControlPlaneSettings.load(file)


def test_without_settings_only_this_machine_is_served() -> None:
    assert ControlPlaneSettings().address == ("127.0.0.1", 7233)


def test_preparing_ahead_is_on_until_one_of_its_two_variables_or_the_file_says_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ControlPlaneSettings().uv_pre_heat
    assert not ControlPlaneSettings(uv_pre_heat=False).uv_pre_heat
    (tmp_path / "settings.toml").write_text("uv_pre_heat = false\n")
    assert not ControlPlaneSettings.load(tmp_path / "settings.toml").uv_pre_heat
    monkeypatch.setenv("UV_PRE_HEAT", "true")
    assert ControlPlaneSettings.load(tmp_path / "settings.toml").uv_pre_heat
    monkeypatch.setenv("FASTFLOW_UV_PRE_HEAT", "0")
    assert not ControlPlaneSettings.load(tmp_path / "settings.toml").uv_pre_heat
    monkeypatch.setenv("FASTFLOW_UV_PRE_HEAT", "never")
    with pytest.raises(SettingsError, match=r"setting uv_pre_heat \(FASTFLOW_UV_PRE_HEAT\): true or false is expected"):
        ControlPlaneSettings.load()


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:0"])
def test_loopback_needs_nothing_else(tmp_path: Path, listen: str) -> None:
    load(tmp_path, listen=listen)


@pytest.mark.parametrize("listen", ["0.0.0.0:7233", "[::]:7233", "192.0.2.1:7233", "worker.example:7233"])
@pytest.mark.parametrize(
    "given", [{}, {"allow_remote": True}, {"token": "secret"}, {"allow_remote": True, "token": ""}]
)
def test_another_address_needs_both_the_permission_and_a_token(
    tmp_path: Path, listen: str, given: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError, match="set allow_remote = true and a token"):
        load(tmp_path, listen=listen, **given)
    load(tmp_path, listen=listen, allow_remote=True, token="secret")


@pytest.mark.parametrize("listen", ["7233", ":7233", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000"])
def test_an_address_that_is_none_is_told_with_an_example(tmp_path: Path, listen: str) -> None:
    with pytest.raises(SettingsError, match='no "host:port"'):
        load(tmp_path, listen=listen)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("default_mem_hard_limit", "lots"),
        ("default_mem_hard_limit", "1m"),
        ("default_cpu_hard_limit", 0.001),
        ("log_limit", "-1g"),
        ("heartbeat_interval", 0),
        ("lost_after", -1),
        ("max_placements", 0),
        ("log_level", "loud"),
        ("database_url", 7),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=name):
        load(tmp_path, **{name: value})


def test_silent_can_not_come_before_suspect(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="silent_after"):
        load(tmp_path, suspect_after=9, silent_after=2)


def test_the_token_is_shown_nowhere(tmp_path: Path) -> None:
    settings = load(tmp_path, token="correct horse")
    assert "correct horse" not in settings.print_config()
    assert "correct horse" not in repr(settings)


def test_every_setting_is_explained() -> None:
    description = ControlPlaneSettings.describe()
    for name in ControlPlaneSettings.model_fields:
        assert f"FASTFLOW_{name.upper()} (" in description


@pytest.mark.parametrize("command", ["upgrade", "check", "backup", "restore"])
def test_the_help_of_a_database_command_has_the_settings_it_needs_and_where_the_others_are(command: str) -> None:
    text = CliRunner().invoke(main, ["db", command, "--help"]).output
    shown = {name for name in ControlPlaneSettings.model_fields if f"FASTFLOW_{name.upper()} (" in text}
    assert shown == {"log_level", "data_dir", "database_url"}
    assert "fastflow-controlplane serve --help" in " ".join(text.split())


def test_the_database_lies_in_the_data_folder_unless_told_otherwise(tmp_path: Path) -> None:
    assert load(tmp_path, data_dir=str(tmp_path)).database == f"sqlite:///{tmp_path}/fastflow.db"
    assert load(tmp_path, database_url="postgresql://db/ff").database == "postgresql://db/ff"


@pytest.mark.parametrize("words", [[], ["db"]])
def test_what_a_command_is_for_is_not_cut_off_in_the_list_of_commands(words: list[str]) -> None:
    assert "..." not in CliRunner().invoke(main, [*words, "--help"]).output.partition("Commands:")[2]
