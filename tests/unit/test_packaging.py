"""What is installed together works together."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STUBS = ROOT / "clients" / "python" / "fastflow" / "v1"


def _lower_bound(name: str) -> Version:
    for text in PROJECT["project"]["dependencies"]:
        requirement = Requirement(text)
        if requirement.name == name:
            return max(Version(specifier.version) for specifier in requirement.specifier if specifier.operator == ">=")
    raise AssertionError(f"{name} is no dependency")


def test_the_oldest_allowed_protobuf_can_import_the_generated_messages() -> None:
    match = re.search(
        r"ValidateProtobufRuntimeVersion\(\s*\S+,\s*(\d+),\s*(\d+),\s*(\d+),", (STUBS / "runs_pb2.py").read_text()
    )
    assert match is not None
    assert _lower_bound("protobuf") >= Version(".".join(match.groups()))


def test_the_oldest_allowed_grpcio_can_import_the_generated_services() -> None:
    match = re.search(r"GRPC_GENERATED_VERSION = '([^']+)'", (STUBS / "runs_pb2_grpc.py").read_text())
    assert match is not None
    assert _lower_bound("grpcio") >= Version(match.group(1))


def test_the_generator_is_pinned_exactly() -> None:
    pins = [Requirement(text) for text in PROJECT["build-system"]["requires"]]
    (tools,) = [pin for pin in pins if pin.name == "grpcio-tools"]
    assert [specifier.operator for specifier in tools.specifier] == ["=="]


@pytest.mark.parametrize(
    ("package", "foreign"),
    [
        ("cli/ffctl", ["fastflow_agent", "fastflow_controlplane"]),
        ("agent/fastflow_agent", ["fastflow_controlplane", "ffctl"]),
        ("controlplane/fastflow_controlplane", ["fastflow_agent", "ffctl"]),
        ("clients/python/fastflow", ["fastflow_agent", "fastflow_controlplane", "ffctl"]),
        ("controlplane/fastflow_controlplane/scheduler", ["grpc", "sqlalchemy"]),
    ],
)
def test_programs_do_not_import_each_other_and_decisions_import_no_io(package: str, foreign: list[str]) -> None:
    imports = re.compile(rf"^\s*(?:from|import) ({'|'.join(foreign)})\b", re.MULTILINE)
    offenders = [str(path) for path in (ROOT / package).rglob("*.py") if imports.search(path.read_text())]
    assert offenders == []


def test_only_the_store_speaks_sql() -> None:
    room = ROOT / "controlplane" / "fastflow_controlplane"
    offenders = [
        str(path.relative_to(room))
        for path in room.rglob("*.py")
        if not path.is_relative_to(room / "store")
        and re.search(r"^\s*(?:from|import) sqlalchemy", path.read_text(), re.M)
    ]
    assert offenders == []


def test_exact_pins_name_no_package_index() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+", line) for line in lines if not line.startswith("#"))
