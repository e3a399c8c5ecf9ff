"""What is read of a pipeline's code to know what to install."""

import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fastflow_agent.uvcache.needs import (
    MAX_PACKAGES,
    Needs,
    UnreadableHeader,
    installed,
    interpreter,
    without_listing,
)

HEADER = b'# /// script\n# dependencies = ["six"]\n# ///\n'


@pytest.fixture
def code(tmp_path: Path) -> Path:
    code = tmp_path / "code"
    code.mkdir()
    (code / "main.py").write_bytes(b"print('secret plans')\n")
    return code


def digest(needs: Needs) -> str:
    return needs.digest("3.11", "sha256:image", "https://index/simple")


def test_only_what_names_requirements_is_taken(code: Path) -> None:
    (code / "requirements.txt").write_bytes(b"six\n")
    (code / "data.csv").write_bytes(b"1,2\n")
    needs = Needs.of(code)
    assert needs == Needs((("requirements.txt", b"six\n"),))
    (code / "main.py").write_bytes(b"print('other plans')\n")
    assert digest(Needs.of(code)) == digest(needs)


def test_a_header_is_taken_without_the_script(code: Path) -> None:
    (code / "main.py").write_bytes(HEADER + b"\nimport six\n")
    assert Needs.of(code) == Needs((), HEADER)


@pytest.mark.parametrize(
    ("asked", "python", "unmet"),
    [
        (">=3.12", "3.11.2", True),
        ("<3.11", "3.11.2", True),
        (">=3.9", "3.11.2", False),
        ("", "3.11.2", False),
        (">=3.12", "", False),
        (">=3.12", "3.13.0rc1", False),
    ],
)
def test_a_header_that_asks_for_another_python_is_told_of(asked: str, python: str, unmet: bool) -> None:
    needs = Needs(header=header(f'requires-python = "{asked}"'))
    said = f'asks for Python "{asked}", but runs get {python}, and uv only warns'
    assert (said in needs.unmet(python)) == unmet
    assert bool(needs.unmet(python)) == unmet
    assert not Needs().unmet(python)


def test_a_header_uv_would_refuse_is_named(code: Path) -> None:
    (code / "main.py").write_bytes(HEADER + b"x = 1\n" + HEADER)
    with pytest.raises(UnreadableHeader, match=r"main\.py: line 5: begins a second block"):
        Needs.of(code)


def test_files_that_requirements_include_are_taken_as_far_as_they_lie_in_the_code(code: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_bytes(b"no\n")
    (code / "requirements").mkdir()
    (code / "requirements.txt").write_bytes(
        b"# -r commented.txt\n-r requirements/base.txt\n--constraint=pins.txt\n-r ../outside.txt\n-r /etc/hostname\n"
        b"-r missing.txt\n-r link.txt\n-r requirements.txt\n-r \x00.txt\n-r " + b"n" * 5000 + b"\n"
    )
    (code / "requirements" / "base.txt").write_bytes(b"six\n-c ../more.txt # why\n")
    (code / "more.txt").write_bytes(b"idna<4\n")
    (code / "pins.txt").write_bytes(b"six==1.16\n")
    (code / "commented.txt").write_bytes(b"no\n")
    (code / "link.txt").symlink_to("/etc/hostname")
    names = [name for name, _ in Needs.of(code).files]
    assert names == ["more.txt", "pins.txt", "requirements.txt", "requirements/base.txt"]


def test_packages_that_lie_in_the_code_are_taken(code: Path) -> None:
    (code / "wheels").mkdir()
    for name in ("a-1-py3-none-any.whl", "b-1.tar.gz", "c-1-py3-none-any.whl", "unnamed-1-py3-none-any.whl"):
        (code / "wheels" / name).write_bytes(name.encode())
    (code / "requirements.txt").write_bytes(
        b"./wheels/a-1-py3-none-any.whl ; python_version > '3'\nb @ file:///fastflow/code/wheels/b-1.tar.gz\n"
    )
    (code / "main.py").write_bytes(
        b'# /// script\n# dependencies = ["c @ file:///fastflow/code/wheels/c-1-py3-none-any.whl"]\n# ///\n'
    )
    names = [name for name, _ in Needs.of(code).files]
    assert names == [
        "requirements.txt",
        "wheels/a-1-py3-none-any.whl",
        "wheels/b-1.tar.gz",
        "wheels/c-1-py3-none-any.whl",
    ]


def test_every_part_that_decides_what_is_installed_makes_another_environment() -> None:
    needs = Needs((("requirements.txt", b"six\n"),))
    others = [
        Needs((("requirements.txt", b"six \n"),)).digest("3.11", "image", "index"),
        Needs((("requirements.txt", b""), ("pins.txt", b"six\n"))).digest("3.11", "image", "index"),
        Needs(header=HEADER).digest("3.11", "image", "index"),
        needs.digest("3.12", "image", "index"),
        needs.digest("3.11", "other", "index"),
        needs.digest("3.11", "image", "other"),
        needs.digest("3.11i", "mage", "index"),
    ]
    assert len({needs.digest("3.11", "image", "index"), *others}) == len(others) + 1


def test_needs_become_a_pipeline_whose_program_lists_what_is_installed(tmp_path: Path) -> None:
    Needs((("reqs/base.txt", b"six\n"),), HEADER).write(tmp_path / "made")
    assert (tmp_path / "made" / "reqs" / "base.txt").read_bytes() == b"six\n"
    main = tmp_path / "made" / "main.py"
    assert main.read_bytes().startswith(HEADER)
    output = subprocess.run([sys.executable, str(main)], check=True, capture_output=True).stdout
    packages = installed(b"Resolved 3 packages\n" + output + b"and more")
    assert any(package.startswith("pytest==") for package in packages)
    assert interpreter(output) == platform.python_version()
    assert without_listing(b"Resolved\n" + output + b"more") == b"Resolved\nmore"


def test_of_two_versions_of_a_package_the_one_that_is_imported_is_listed(tmp_path: Path) -> None:
    for folder, name, version in (("first", "Two.Times", "2.0"), ("second", "two_times", "1.0")):
        info = tmp_path / folder / f"two_times-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    Needs().write(tmp_path / "made")
    path = f"{tmp_path / 'first'}:{tmp_path / 'second'}"
    command = [sys.executable, str(tmp_path / "made" / "main.py")]
    output = subprocess.run(command, check=True, capture_output=True, env={"PYTHONPATH": path}).stdout
    assert [package for package in installed(output) if "imes" in package] == ["Two.Times==2.0"]


def test_where_no_variable_tells_the_folder_a_file_elsewhere_is_told_to_be_there(tmp_path: Path) -> None:
    info = tmp_path / "packages" / "away-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: away\nVersion: 1.0\n")
    (info / "direct_url.json").write_text('{"url": "file:///elsewhere/away.whl", "archive_info": {}}')
    Needs().write(tmp_path / "made")
    command = [sys.executable, str(tmp_path / "made" / "main.py")]
    environment = {"PYTHONPATH": str(info.parent)}
    output = subprocess.run(command, check=True, capture_output=True, env=environment).stdout
    assert [package for package in installed(output) if "away" in package] == ["away @ file:///elsewhere/away.whl"]


@pytest.mark.parametrize(
    ("listing", "packages"),
    [
        (b"[1]", ()),
        (b'["six==1.16", 2, "no version", "\\ud800==1", "toml==0.10"]', ("six==1.16", "toml==0.10")),
        (b"[" * 100_000 + b"]", ()),
        (b"[}]", ()),
        (b'["' + b"x" * 1000 + b'==1"]', ()),
        (b"[" + b'"six==1",' * 5000 + b'"six==1"]', ("six==1",) * MAX_PACKAGES),
    ],
)
def test_a_listing_that_code_of_a_package_made_up_does_no_harm(listing: bytes, packages: tuple[str, ...]) -> None:
    assert installed(b"fastflow-packages " + listing + b"\n") == packages


def test_a_file_is_read_once_whatever_links_lead_to_it(code: Path) -> None:
    for link in ("d", "e"):
        (code / link).symlink_to(".")
    (code / "requirements.txt").write_text("-r d/requirements.txt\n-r e/requirements.txt\nsix\n")
    assert {name for name, _ in Needs.of(code).files} == {
        "requirements.txt",
        "d/requirements.txt",
        "e/requirements.txt",
    }


def test_files_that_are_named_in_ever_new_ways_are_read_as_far_as_they_fit(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastflow_agent.uvcache.needs.MAX_FILES_BYTES", 5_000)
    (code / "d").symlink_to(".")
    (code / "w.whl").write_bytes(b"x" * 1000)
    (code / "requirements.txt").write_text("".join(f"./{'d/' * depth}w.whl\n" for depth in range(30)))
    assert sum(len(content) for _, content in Needs.of(code).files) <= 5_000


def test_a_long_chain_of_includes_is_followed_to_its_end(code: Path) -> None:
    (code / "requirements.txt").write_text("-r 0.txt\n")
    for number in range(1500):
        (code / f"{number}.txt").write_text(f"-r{' ' * 1000}{number + 1}.txt\n")
    assert len(Needs.of(code).files) == 1501


def test_output_without_a_listing_names_no_package() -> None:
    assert installed(b"error: no") == ()
    assert interpreter(b"error: no") == ""


def test_versions_that_requirements_are_held_to_make_another_environment(code: Path) -> None:
    (code / "requirements.txt").write_bytes(b"six\n")
    needs = Needs.of(code)
    held = replace(needs, versions=("six==1.16.0",))
    assert held.can_be_held
    assert len({digest(needs), digest(held), digest(replace(needs, versions=("six==1.17.0",)))}) == 3


def test_a_header_is_held_to_versions_where_uv_will_see_it(code: Path, tmp_path: Path) -> None:
    (code / "main.py").write_bytes(HEADER)
    needs = Needs.of(code)
    assert needs.can_be_held
    replace(needs, versions=("six==1.16.0",)).write(tmp_path / "made")
    assert b'constraint-dependencies = ["six==1.16.0"]' in (tmp_path / "made" / "main.py").read_bytes()


def header(*lines: str) -> bytes:
    return "\n".join(("# /// script", *(f"# {line}" for line in lines), "# ///", "")).encode()


@pytest.mark.parametrize(
    ("needs", "fetched"),
    [
        (Needs(), False),
        (Needs((("requirements.txt", b"six\n"),)), True),
        (Needs(header=header('dependencies = ["six"]', 'requires-python = ">=3.9"')), True),
        (Needs(header=header('dependencies = ["six"]', "[tool.uv]", 'constraint-dependencies = ["six<2"]')), True),
        (Needs(header=header('dependencies = ["six"]', "[tool.uv.sources]", 'six = { index = "own" }')), False),
        (Needs(header=header('dependencies = ["six"]', "[tool.uv]", 'index-url = "http://own"')), False),
        (Needs(header=header('dependencies = ["-e ."]')), False),
        (Needs(header=header('dependencies = ["six @ http://own/six.whl\\n--index-url http://own"]')), False),
        (Needs(header=header(f'dependencies = ["six; {"(" * 2000}"]')), False),
        (Needs(header=header('dependencies = "six"')), False),
        (Needs(header=header("dependencies = [")), False),
    ],
)
def test_only_what_requirements_files_say_as_well_can_be_fetched(needs: Needs, fetched: bool) -> None:
    assert needs.can_be_fetched is fetched


def test_a_header_is_written_as_requirements_files_too_with_the_versions_it_is_held_to(tmp_path: Path) -> None:
    needs = Needs(header=header('dependencies = ["six", "toml>=0.1"]'), versions=("six==1.16",))
    needs.write(tmp_path / "written")
    assert (tmp_path / "written/main.py.requirements.txt").read_text() == (
        "-c main.py.constraints.txt\nsix\ntoml>=0.1\n"
    )
    assert (tmp_path / "written/main.py.constraints.txt").read_text() == "six==1.16\n"
