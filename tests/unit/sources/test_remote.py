"""Addresses of repositories: what is taken, and what is refused because it would be shown."""

from pathlib import Path

import pytest
from fastflow.service.settings import SettingsError
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.sources.remote import Credentials, check_folder, may_carry_token, parse_address
from fastflow_controlplane.sources.settings import SourceSettings
from pydantic import ValidationError


@pytest.mark.parametrize(
    ("url", "transport", "host", "user"),
    [
        ("https://git.example/team/flows.git", "https", "git.example", ""),
        ("http://127.0.0.1:8080/flows.git", "http", "127.0.0.1", ""),
        ("ssh://deploy@git.example:2222/flows.git", "ssh", "git.example", "deploy"),
        ("ssh://git.example/flows.git", "ssh", "git.example", "git"),
        ("git@git.example:team/flows.git", "ssh", "git.example", "git"),
        ("git.example:flows.git", "ssh", "git.example", "git"),
        ("deploy@git.example:@team/flows.git", "ssh", "git.example", "deploy"),
        ("file://localhost/srv/git/flows.git", "file", "", ""),
        ("/srv/git/flows.git", "file", "", ""),
        ("file:///srv/git/flows.git", "file", "", ""),
    ],
)
def test_addresses_are_read(url: str, transport: str, host: str, user: str) -> None:
    address = parse_address(url)
    assert (address.transport, address.host, address.user) == (transport, host, user)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://s3cret@git.example/x", "ffctl secrets set TOKEN --source NAME"),
        ("https://me:s3cret@git.example/x", "must hold no user name, password or token"),
        ("ssh://git:s3cret@git.example/x", "ffctl secrets set SSH_KEY --source NAME"),
        ("oauth2:s3cret@git.example:team/x.git", "ffctl secrets set TOKEN --source NAME"),
        ("oauth2:s3cret@git.example/team/x.git", "ffctl secrets set TOKEN --source NAME"),
        ("me@oauth2:s3cret@git.example:team/x.git", "ffctl secrets set TOKEN --source NAME"),
        ("oauth2:s3/cret@git.example:team/x.git", "ffctl secrets set TOKEN --source NAME"),
        ("https:/me:s3cret@git.example/x", "ffctl secrets set TOKEN --source NAME"),
        ("file://me:s3cret@git.example/x", "names a file of this machine: write it without a host"),
        ("file://s3cret/x", "names a file of this machine: write it without a host"),
        ("https://git.example/x?private_token=s3cret", "must end with its path"),
        ("https://git.example/x#s3cret", "must end with its path"),
        ("ftp://git.example/s3cret", "must begin with https://"),
        ("https:///s3cret", "names no host"),
        ("https://[s3cret/x", "is no address"),
        ("s3cret", "is no address"),
        ("", "is empty"),
        ("https://git.example/s3cret x", "holds blanks"),
    ],
)
def test_what_is_refused_is_told_with_the_remedy_and_never_repeated(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_address(url)
    assert "s3cret" not in str(caught.value)


def test_a_credential_in_a_setting_reaches_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFLOW_SOURCES", '[{"name": "main", "url": "https://me:s3cret@git.example/x"}]')
    with pytest.raises(SettingsError, match="ffctl secrets set TOKEN") as caught:
        ControlPlaneSettings.load()
    assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("FASTFLOW_SOURCES", '[{"name": "s3cret"')
    with pytest.raises(SettingsError, match=r"sources.*no valid JSON") as caught:
        ControlPlaneSettings.load()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('[{"name": "a", "url": "/x", "token": "s3cret"}]', r"sources\[\"a\"\] .*token: a credential is no setting"),
        ('[{"name": "a", "url": "/x", "s3": 1}]', r'setting sources\["a"\]\.s3 \(FASTFLOW_SOURCES\): there is no such'),
        ('[{"name": "a", "url": "/x"}, {"name": "b"}]', r'setting sources\["b"\] \(FASTFLOW_SOURCES\): a source has'),
        ('[{"name": 7, "url": "/x"}]', r"setting sources\[0\]\.name \(FASTFLOW_SOURCES\): .*string"),
        ('["a"]', r"setting sources\[0\] \(FASTFLOW_SOURCES\): "),
        (
            '[{"name": "a", "url": "git@h:x", "known_hosts": ["h ssh-rsa AAAA", 7]}]',
            r'setting sources\["a"\]\.known_hosts\[1\] \(FASTFLOW_SOURCES\): ',
        ),
        ('{"name": "a", "url": "/x"}', r"setting sources \(FASTFLOW_SOURCES\): a list is expected"),
        (
            '[{"name": "a", "url": "g@h:x", "known_hosts": "h k"}]',
            r'sources\["a"\]\.known_hosts .*a list is expected: \[',
        ),
        ('[{"url": "/x"}]', r"setting sources\[0\]\.name \(FASTFLOW_SOURCES\): is not there"),
        ("s3cret", r"^setting sources \(FASTFLOW_SOURCES\): is no valid JSON$"),
    ],
)
def test_sources_that_can_not_be_read_are_told_for_people(
    monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("FASTFLOW_SOURCES", value)
    with pytest.raises(SettingsError, match=message) as caught:
        ControlPlaneSettings.load()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a/b", "folder": "x"}, "name has letters"),
        ({"name": "a"}, "either folder or url"),
        ({"name": "a", "folder": "x", "url": "/y"}, "either folder or url; a folder inside .* is its path"),
        ({"name": "a", "folder": "x", "branch": "main"}, "belong to a source with url"),
        ({"name": "a", "url": "git@git.example:x"}, "needs known_hosts, the pinned host key: see `ssh-keyscan git.exa"),
        ({"name": "a", "url": "ssh://git.example/x"}, "see `ssh-keyscan git.example`"),
        ({"name": "a", "url": "ssh://git@git.example:2222/x"}, "see `ssh-keyscan -p 2222 git.example`"),
        ({"name": "a", "url": "git@git.example:x", "known_hosts": ["no key"]}, "as ssh-keyscan prints them"),
        ({"name": "a", "url": "/x", "path": "../y"}, "must stay in the repository"),
        ({"name": "a", "url": "/x", "brunch": "main"}, "brunch"),
    ],
)
def test_a_source_that_can_not_work_is_refused_by_field(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceSettings(**values)


def test_a_source_in_a_file_is_named_unless_the_environment_has_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "controlplane.toml"
    config.write_text('[[sources]]\nname = "flows"\nurl = "/x"\nbrunch = "main"\n')
    with pytest.raises(SettingsError, match=r'setting sources\["flows"\]\.brunch \(FASTFLOW_SOURCES\): there is no'):
        ControlPlaneSettings.load(config)
    monkeypatch.setenv("FASTFLOW_SOURCES", '[{"name": "ops", "url": "/x", "brunch": "main"}]')
    with pytest.raises(SettingsError, match=r'setting sources\["ops"\]\.brunch'):
        ControlPlaneSettings.load(config)


def test_sources_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFLOW_SOURCES", '[{"name": "a", "url": "/x"}, {"name": "a", "folder": "y"}]')
    with pytest.raises(SettingsError, match="two sources have the name a"):
        ControlPlaneSettings.load()


def test_settings_are_shown_as_toml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFLOW_SOURCES", '[{"name": "a", "url": "/x", "path": "/pipelines/"}]')
    settings = ControlPlaneSettings.load()
    assert 'sources = [{ name = "a", url = "/x", path = "pipelines" }]' in settings.print_config()
    assert [source.name for source in settings.all_sources] == ["a"]
    assert "FASTFLOW_SOURCES (JSON list; default: [])" in ControlPlaneSettings.describe()


def test_without_sources_the_pipelines_folder_is_the_one_there_is() -> None:
    (source,) = ControlPlaneSettings.load().all_sources
    assert (source.name, str(source.folder)) == ("pipelines", "pipelines")


@pytest.mark.parametrize(("folder", "kept"), [("", ""), ("/", ""), ("a/b/", "a/b"), ("./a", "a")])
def test_a_folder_in_a_repository_has_one_form(folder: str, kept: str) -> None:
    assert check_folder(folder) == kept


def test_a_token_goes_only_where_nobody_listens() -> None:
    assert may_carry_token(parse_address("https://git.example/x"))
    assert may_carry_token(parse_address("http://localhost:8080/x"))
    assert not may_carry_token(parse_address("http://git.example/x"))


def test_credentials_are_in_no_text() -> None:
    credentials = Credentials(token="s3cret", ssh_key="k3y")
    assert "s3cret" not in repr(credentials)
    assert "k3y" not in repr(credentials)
    assert credentials.hidden("the server said s3cret and k3y") == "the server said *** and ***"
