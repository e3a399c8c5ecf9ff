from pathlib import Path

import pytest
from click.testing import CliRunner
from fastflow.service.settings import SettingsError
from fastflow_agent.__main__ import main
from fastflow_agent.settings import AgentSettings


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FASTFLOW_TOKEN", "FASTFLOW_CONTROLPLANE", "FASTFLOW_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_the_help_of_confirming_logs_has_the_settings_it_needs_and_where_the_others_are() -> None:
    text = CliRunner().invoke(main, ["confirm-logs", "--help"]).output
    shown = {name for name in AgentSettings.model_fields if f"FASTFLOW_{name.upper()} (" in text}
    assert shown == {"log_level", "data_dir"}
    assert "fastflow-agent run --help" in " ".join(text.split())


def test_help_explains_every_setting() -> None:
    shown = CliRunner().invoke(main, ["run", "--help"])
    assert shown.exit_code == 0
    for name, field in AgentSettings.model_fields.items():
        assert f"FASTFLOW_{name.upper()}" in shown.output
        assert field.description


def test_print_config_shows_what_is_in_force_and_hides_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "agent.toml"
    config.write_text('agent_name = "worker-7"\nmemory_capacity = "6g"\nimage = "from-the-file"\n')
    monkeypatch.setenv("FASTFLOW_IMAGE", "from-the-environment")
    monkeypatch.setenv("FASTFLOW_TOKEN", "hush")
    shown = CliRunner().invoke(main, ["run", "--config", str(config), "--print-config"])
    assert shown.exit_code == 0, shown.output
    assert 'agent_name = "worker-7"' in shown.output
    assert 'memory_capacity = "6g"' in shown.output
    assert 'image = "from-the-environment"' in shown.output
    assert "hush" not in shown.output


def test_a_wrong_setting_is_named_and_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFLOW_MEMORY_CAPACITY", "lots")
    shown = CliRunner().invoke(main, ["run"])
    assert shown.exit_code == 2
    assert "FASTFLOW_MEMORY_CAPACITY" in shown.output


def test_runs_can_be_left_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFLOW_NETWORK", "none")
    assert AgentSettings.load().egress.network == "none"


def test_a_control_plane_on_another_host_needs_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFLOW_CONTROLPLANE", "10.0.0.7:7233")
    with pytest.raises(SettingsError, match="token"):
        AgentSettings.load()
    monkeypatch.setenv("FASTFLOW_TOKEN", "hush")
    assert AgentSettings.load().token_value == "hush"


@pytest.mark.parametrize("address", ["127.0.0.1:7233", "localhost:7233", "[::1]:7233"])
def test_a_control_plane_on_this_host_needs_none(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFLOW_CONTROLPLANE", address)
    assert AgentSettings.load().controlplane == address


@pytest.mark.parametrize("address", ["nowhere", "host:", ":7233", "host:99999", "host:port"])
def test_an_address_without_host_or_port_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFLOW_CONTROLPLANE", address)
    with pytest.raises(SettingsError, match="host:port"):
        AgentSettings.load()


def test_capacity_is_the_hosts_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert AgentSettings.load().cpu_milli_cores >= 1000
    assert AgentSettings.load().memory_bytes > 1 << 28
    monkeypatch.setenv("FASTFLOW_CPU_CAPACITY", "1.5")
    assert AgentSettings.load().cpu_milli_cores == 1500
    monkeypatch.setenv("FASTFLOW_MEMORY_CAPACITY", "1.5g")
    assert AgentSettings.load().memory_bytes == 3 << 29


def test_logins_of_indexes_and_proxies_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFLOW_INDEX_URL", "https://user:hush-1@index.example/simple")
    monkeypatch.setenv("FASTFLOW_EXTRA_INDEX_URLS", "https://hush-2@a.example/simple https://u:hush-3@b.example/simple")
    monkeypatch.setenv("FASTFLOW_HTTPS_PROXY", "http://u:hu/sh-4@proxy.example:3128")
    shown = CliRunner().invoke(main, ["run", "--print-config"]).output
    assert 'index_url = "https://***@index.example/simple"' in shown
    assert 'extra_index_urls = "https://***@a.example/simple https://***@b.example/simple"' in shown
    assert 'https_proxy = "http://***@proxy.example:3128"' in shown
    settings = AgentSettings.load()
    assert "hush" not in shown + repr(settings) + str(settings) + repr(settings.egress)
    assert settings.egress.extra_index_urls[1] == "https://u:hush-3@b.example/simple"


@pytest.mark.parametrize("name", ["FASTFLOW_INDEX_URL", "FASTFLOW_EXTRA_INDEX_URLS"])
def test_an_index_that_is_no_address_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "https://user:hush-1@host:port/simple")
    shown = CliRunner().invoke(main, ["run"])
    assert shown.exit_code == 2
    assert name in shown.output
    assert "hush-1" not in shown.output


def test_what_a_command_is_for_is_not_cut_off_in_the_list_of_commands() -> None:
    assert "..." not in CliRunner().invoke(main, ["--help"]).output.partition("Commands:")[2]
