"""The runner image, as a run meets it: read-only, uid 1000, no capabilities, no network."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest
from fastflow_agent.runtime.docker_options import DockerOptions

from tests.slots import tiny_wheel

PROJECT = Path(__file__).resolve().parents[2]
BUILD = [str(PROJECT / "deploy" / "runner" / "build"), "--python", sys.executable]
# Bytes. It is 140 MB, 38 of them uv; what would break this is a compiler or a second interpreter coming along.
LARGEST_SIZE = 160_000_000

In = Callable[..., str]


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="module")
def image(engine: docker.DockerClient) -> Any:
    """The image that `deploy/runner/build` makes, built now if it is not there."""
    subprocess.run(BUILD, check=True, timeout=600)
    tag = subprocess.run([*BUILD, "--print-tag"], check=True, capture_output=True, text=True).stdout.strip()
    return engine.images.get(tag)


@pytest.fixture
def inside(engine: docker.DockerClient, image: Any) -> In:
    """Runs a command under the container's contract and returns what it wrote to stdout; more options go to Docker."""

    def run(*command: str, **options: Any) -> str:
        output = engine.containers.run(
            image.id,
            list(command),
            remove=True,
            init=True,
            read_only=True,
            user="1000:1000",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            network_mode="none",
            pids_limit=DockerOptions("", Path(), Path(), "").pids_limit,
            tmpfs={"/tmp": "exec,size=256m"},
            labels=["org.fastflow.test"],
            **options,
        )
        assert isinstance(output, bytes)
        return output.decode().strip()

    return run


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A pipeline folder, to be mounted read-only at /code."""
    # pytest makes its folders for their owner alone; here a container's uid 1000 reads them.
    tmp_path.chmod(0o755)
    return tmp_path


def mounted(code: Path) -> dict[str, Any]:
    return {"working_dir": "/code", "volumes": {str(code): {"bind": "/code", "mode": "ro"}}}


def python(inside: In, program: str) -> Any:
    """Runs a program with the image's Python and returns what it printed as JSON."""
    return json.loads(inside("python3", "-c", f"import json\n{program}"))


def test_the_labels_tell_what_is_inside(image: Any, inside: In) -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert image.labels["org.fastflow.runner.version"] == project["version"]
    assert inside("python3", "--version").startswith(f"Python {image.labels['org.fastflow.pythons']}.")
    assert inside("uv", "--version").split()[1] == image.labels["org.fastflow.uv"]


def test_without_further_words_a_container_is_not_root(image: Any) -> None:
    assert image.attrs["Config"]["User"] == "1000:1000"


def test_uid_1000_has_a_name_and_a_home_it_can_write_to(inside: In) -> None:
    told = python(
        inside,
        "import getpass, os, pathlib, pwd\n"
        "pathlib.Path('~/proof').expanduser().write_text('x')\n"
        "print(json.dumps([getpass.getuser(), pwd.getpwuid(1000).pw_dir, os.environ['HOME'], os.getgid()]))",
    )
    assert told == ["fastflow", "/tmp", "/tmp", 1000]


def test_uv_stands_where_the_wrapper_calls_it_and_belongs_to_root(inside: In) -> None:
    assert inside("stat", "-c", "%n %U %a", "/usr/local/bin/uv", "/usr/local/bin/uvx").splitlines() == [
        "/usr/local/bin/uv root 755",
        "/usr/local/bin/uvx root 755",
    ]


def test_uv_runs_a_pipeline_offline_under_dockers_init(inside: In, code: Path) -> None:
    (code / "main.py").write_text("import sys\nprint(sys.executable, open('/proc/1/comm').read().strip())")
    told = inside("uv", "run", "--no-project", "main.py", **mounted(code))
    assert told == "/usr/bin/python3 docker-init"


def test_uv_installs_a_wheel_for_the_images_python(inside: In, code: Path) -> None:
    name, wheel = tiny_wheel("tiny", "GREETING = 'from a wheel'\n")
    (code / name).write_bytes(wheel)
    (code / name).chmod(0o644)
    (code / "requirements.txt").write_text(f"tiny @ file:///code/{name}\n")
    (code / "main.py").write_text("import tiny\nprint(tiny.GREETING)")
    told = inside("uv", "run", "--offline", "--with-requirements", "requirements.txt", "main.py", **mounted(code))
    assert told == "from a wheel"


def test_uv_never_fetches_a_python_of_its_own(inside: In) -> None:
    with pytest.raises(docker.errors.ContainerError, match=r"No interpreter found for Python 3\.7"):
        inside("uv", "run", "--python", "3.7", "python", "-V")


def test_the_standard_library_is_compiled_since_a_read_only_root_can_not_cache(inside: In) -> None:
    missing = python(
        inside,
        "import importlib.util, os, pathlib, sysconfig\n"
        "library = pathlib.Path(sysconfig.get_path('stdlib'))\n"
        "def fresh(source):\n"
        "    compiled = pathlib.Path(importlib.util.cache_from_source(str(source)))\n"
        "    header = compiled.read_bytes()[:16] if compiled.exists() else b''\n"
        "    return header[:4] == importlib.util.MAGIC_NUMBER and (\n"
        "        int.from_bytes(header[8:12], 'little') == int(source.stat().st_mtime))\n"
        "print(json.dumps([str(path) for path in library.rglob('*.py') if not fresh(path)]))",
    )
    assert missing == []


def test_what_pipelines_expect_of_a_system_is_there(inside: In) -> None:
    told = python(
        inside,
        "import socket, sqlite3, ssl, sys, zoneinfo\n"
        "print(json.dumps({\n"
        "    'authorities': ssl.create_default_context().cert_store_stats()['x509_ca'],\n"
        "    'zone': str(zoneinfo.ZoneInfo('Europe/Berlin')),\n"
        "    'https': socket.getservbyname('https'),\n"
        "    'encoding': sys.stdout.encoding,\n"
        "}))",
    )
    assert told.pop("authorities") > 50
    assert told == {"zone": "Europe/Berlin", "https": 443, "encoding": "utf-8"}


def test_no_file_lends_a_run_the_rights_of_root(inside: In) -> None:
    assert inside("sh", "-c", "find / -xdev -type f -perm /6000 2>/dev/null || true") == ""


def test_nothing_tells_where_the_image_was_built(inside: In) -> None:
    assert inside("find", "/etc/apt", "-name", "*sources*", "-o", "-name", "99mmdebstrap") == ""
    assert inside("find", "/var/cache", "/var/log", "-type", "f") == ""


def test_the_image_stays_small(image: Any) -> None:
    assert image.attrs["Size"] < LARGEST_SIZE


def test_a_second_build_finds_the_first(engine: docker.DockerClient, image: Any) -> None:
    again = subprocess.run(BUILD, check=True, capture_output=True, text=True, timeout=60).stdout
    (line,) = again.splitlines()
    # Other tests give the same image names of their own.
    (tag,) = [tag for tag in image.tags if f"{tag} is there" in line]
    assert engine.images.get(tag).id == image.id
