from pathlib import Path

import pytest
from fastflow_agent.runtime.base import Egress, RuntimeFault
from fastflow_agent.runtime.container_spec import egress_environment
from fastflow_agent.runtime.indexes import Index, Indexes

PRIVATE = "https://builder:p%40ss-word@private.example:8443/simple"
EGRESS = Egress(index_url="https://mirror.example/simple", extra_index_urls=(PRIVATE, "file:///srv/wheels"))


def test_runs_get_the_addresses_of_all_indexes_and_no_login() -> None:
    assert egress_environment(EGRESS) == {
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INDEX": "https://private.example:8443/simple file:///srv/wheels",
    }


def test_a_preparer_gets_logins_apart_from_the_addresses() -> None:
    assert Indexes.of(EGRESS).environment_with_logins() == {
        "UV_DEFAULT_INDEX": "fastflow0=https://mirror.example/simple",
        "UV_INDEX": "fastflow1=https://private.example:8443/simple fastflow2=file:///srv/wheels",
        "UV_INDEX_FASTFLOW1_USERNAME": "builder",
        "UV_INDEX_FASTFLOW1_PASSWORD": "p@ss-word",
    }


def test_without_indexes_nothing_is_said_of_them() -> None:
    assert egress_environment(Egress()) == {}
    assert Indexes.of(Egress()).environment_with_logins() == {}
    assert Indexes.of(Egress()).names == ""


def test_another_login_makes_no_other_environment_and_another_index_does() -> None:
    other_login = Egress(index_url="https://a:b@mirror.example/simple", extra_index_urls=EGRESS.extra_index_urls)
    assert Indexes.of(other_login).names == Indexes.of(EGRESS).names
    names = {
        Indexes.of(egress).names
        for egress in (
            EGRESS,
            Egress(index_url="https://mirror.example/simple"),
            Egress(extra_index_urls=("https://mirror.example/simple",)),
            Egress(),
        )
    }
    assert len(names) == 4


def test_logins_of_a_file_are_for_the_indexes_that_have_none(tmp_path: Path) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine mirror.example login robot password t0ken-1\nmachine private.example login x password y\n")
    values = Indexes.of(EGRESS).with_logins(file).environment_with_logins()
    assert (values["UV_INDEX_FASTFLOW0_USERNAME"], values["UV_INDEX_FASTFLOW0_PASSWORD"]) == ("robot", "t0ken-1")
    assert values["UV_INDEX_FASTFLOW1_PASSWORD"] == "p@ss-word"


def test_a_file_of_logins_that_can_not_be_read_is_named_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFault, match=r"missing.*can not be read: No such file"):
        Indexes.of(EGRESS).with_logins(tmp_path / "missing")
    broken = tmp_path / "broken"
    broken.write_text("machine a login b password c\nt0ken-1 t0ken-2\n")
    with pytest.raises(RuntimeFault, match=r"broken, line \d, is no netrc") as fault:
        Indexes.of(EGRESS).with_logins(broken)
    assert "t0ken" not in str(fault.value)
    assert fault.value.__cause__ is None


@pytest.mark.parametrize(
    "text",
    ["index.example/simple", "https://", "ftp://u:secret-1@host/", "https://u:secret-1@host:port/", "http://a b/"],
)
def test_what_is_no_address_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as https://index\.example/simple") as fault:
        Index.parse(text)
    assert "secret-1" not in str(fault.value)


def test_no_login_shows_where_objects_are_printed() -> None:
    shown = repr(EGRESS) + repr(Indexes.of(EGRESS))
    assert "pass" not in shown.replace("password", "")
    assert "ss-word" not in shown
