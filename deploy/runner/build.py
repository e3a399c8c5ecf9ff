#!/usr/bin/env python3
"""Makes sure the runner image is there: the one image every pipeline runs in.

If a registry is named, the image is pulled from it. Else it is built here, with no registry at all, from the Debian
packages that apt of this machine offers and the `uv` program of a virtual environment. A hash of what went in is a
label of the image, so a second call finds it and ends at once.

Exit codes: 0 the image is there, 1 it is not (the last line says why and what to do), 2 usage.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = "fastflow/runner"

# A registry that is there answers in well under a second; a packet filter that drops is noticed only by waiting.
REGISTRY_ANSWER_SECONDS = 5.0
# About 60 MB compressed; at 1 MB/s a minute. Past this the local build is quicker.
PULL_SECONDS = 180.0
# Half a minute on two cores; ten times as long on a slow mirror is still worth waiting for.
BUILD_SECONDS = 900.0
# The engine answers a question about an image in milliseconds; a hanging one must not hang us.
ENGINE_ANSWER_SECONDS = 20.0

# What mmdebstrap reports on its way, and how a person would say it.
PHASES = {
    "running apt-get update": "reading the package lists",
    "downloading packages": "downloading packages",
    "extracting archives": "unpacking them",
    "installing essential": "setting up the base system",
    "installing remaining": "setting up Python",
    "cleaning package lists": "removing what a run never needs",
}


class SetupError(Exception):
    """The image can not be had. The text is one sentence for a person: what was wrong and what to do."""


@dataclass(frozen=True)
class Recipe:
    """What the image is to be made of."""

    version: str
    uv: Path
    uv_version: str
    suite: str

    @property
    def tag(self) -> str:
        return f"{REPOSITORY}:{self.version}"

    @property
    def inputs(self) -> str:
        """Hash of what decides the content, but for the packages' versions, which follow Debian at each build."""
        digest = hashlib.sha256()
        for name in ("build.py", "Dockerfile", "finish", "packages"):
            digest.update((HERE / name).read_bytes() + b"\0")
        digest.update("\0".join((self.version, self.uv_version, self.suite)).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Image:
    """An image the engine has."""

    id: str
    created: str
    size: int
    labels: dict[str, str]
    digests: list[str]

    def __str__(self) -> str:
        python = self.labels.get("org.fastflow.pythons", "?")
        return f"{self.size / 1e6:.0f} MB, Python {python}, made {self.created[:10]}"


def main() -> int:
    arguments = parse_arguments()
    try:
        recipe = read_recipe(arguments.uv)
        if arguments.print_tag:
            print(recipe.tag)
        else:
            ensure_image(recipe, arguments.registry, rebuild=arguments.rebuild)
    except SetupError as error:
        print(f"runner image: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse_arguments() -> argparse.Namespace:
    named = os.environ.get("FASTFLOW_REGISTRY", "")
    parser = argparse.ArgumentParser(description="Makes sure the runner image is there: pulls it, or builds it here.")
    add = parser.add_argument
    add("--uv", type=Path, help="uv program to put in (default: that of the Python running this, else of PATH)")
    add("--registry", default=named, help="host[:port][/path] to pull from (default: $FASTFLOW_REGISTRY; none: build)")
    add("--rebuild", action="store_true", help="build even if the image is there: takes in Debian's updates")
    add("--print-tag", action="store_true", help="print the image's name and do nothing")
    return parser.parse_args()


def ensure_image(recipe: Recipe, registry: str, *, rebuild: bool) -> None:
    """Leaves an image under `recipe.tag` that was made of this recipe, or pulled from `registry` in this version."""
    present = inspect_image(recipe.tag)
    if present and not rebuild and is_current(present, recipe, registry):
        say(f"{recipe.tag} is there ({present})")
        return
    if not (registry and not rebuild and pull(recipe, registry)):
        build(recipe)
    made = inspect_image(recipe.tag)
    if present and made and made.id != present.id:
        # Fails while a container uses it; then it may stay.
        docker("image", "rm", present.id)


def read_recipe(uv: Path | None) -> Recipe:
    with (HERE.parents[1] / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    uv = uv or find_uv()
    if not (uv.is_file() and uv.with_name("uvx").is_file()):
        raise SetupError(f"no uv and uvx at {uv}: install the `uv` wheel for this Python, or name them with --uv")
    answer = subprocess.run([uv, "--version"], capture_output=True, text=True, check=False)
    match = re.match(r"uv (\S+)", answer.stdout)
    if not match:
        raise SetupError(f"{uv} does not tell its version: {answer.stderr.strip() or answer.stdout.strip()}")
    return Recipe(version, uv.resolve(), match[1], read_suite())


def find_uv() -> Path:
    try:
        from uv import find_uv_bin
    except ImportError:
        return Path(shutil.which("uv") or "uv")
    return Path(find_uv_bin())


def read_suite() -> str:
    """The release this machine runs, for example `bookworm`; empty where releases have no such names."""
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition("=")[2].strip('"') for line in lines if line.startswith("VERSION_CODENAME=")), "")


def inspect_image(tag: str) -> Image | None:
    answer = docker("image", "inspect", tag)
    if answer.returncode == 0:
        found = json.loads(answer.stdout)[0]
        labels = found["Config"]["Labels"] or {}
        return Image(found["Id"], found["Created"], found["Size"], labels, found["RepoDigests"] or [])
    if "no such image" in answer.stderr.lower():
        return None
    raise SetupError(f"the Docker engine does not answer: {answer.stderr.strip()}")


def is_current(image: Image, recipe: Recipe, registry: str) -> bool:
    if image.labels.get("org.fastflow.runner.inputs") == recipe.inputs:
        return True
    from_registry = any(digest.startswith(f"{registry}/{REPOSITORY}@") for digest in image.digests)
    return bool(registry) and from_registry and image.labels.get("org.fastflow.runner.version") == recipe.version


def pull(recipe: Recipe, registry: str) -> bool:
    """Pulls the image from `registry` and gives it its local name; False, said in one line, if that does not work.

    No registry is asked unless one is named: on a public one the image's name could belong to anybody.
    """
    reference = f"{registry}/{recipe.tag}"
    say(f"asking {registry} for it")
    try:
        for _ in lines_of(["docker", "pull", reference], PULL_SECONDS, first_within=REGISTRY_ANSWER_SECONDS):
            pass
    except (subprocess.SubprocessError, TimeoutError) as error:
        say(f"{registry} has it not ({reason_of(error)}), building it here")
        return False
    pulled = inspect_image(reference)
    if not pulled or pulled.labels.get("org.fastflow.runner.version") != recipe.version:
        say(f"{reference} is not a runner image of version {recipe.version}, building it here")
        return False
    docker("tag", reference, recipe.tag)
    say(f"{recipe.tag} is there, pulled from {registry} ({pulled})")
    return True


def build(recipe: Recipe) -> None:
    """Bootstraps a root folder as one tar file, and imports that as an image."""
    started = time.monotonic()
    install_mmdebstrap()
    sources = apt_sources(recipe.suite)
    say(f"building {recipe.tag} from Debian {recipe.suite} packages and uv {recipe.uv_version} (about half a minute)")
    with tempfile.TemporaryDirectory(prefix="fastflow-runner-") as folder:
        # mmdebstrap without root works as another user id, which must be able to read the hook's folder.
        Path(folder).chmod(0o755)
        root = Path(folder) / "root.tar"
        bootstrap(recipe, sources, root, started)
        progress(started, "importing it into Docker")
        changes = [f"--change={line}" for line in (*config_lines(), *label_lines(recipe, python_version(root)))]
        answer = docker("import", *changes, str(root), recipe.tag, seconds=BUILD_SECONDS)
    if answer.returncode != 0:
        raise SetupError(f"docker import failed: {answer.stderr.strip()}")
    say(f"{recipe.tag} is there ({inspect_image(recipe.tag)}), built in {time.monotonic() - started:.0f} s")


def bootstrap(recipe: Recipe, sources: list[str], root: Path, started: float) -> None:
    programs = [str(recipe.uv), str(recipe.uv.with_name("uvx"))]
    command = [
        "mmdebstrap",
        "--variant=essential",
        f"--include={','.join((HERE / 'packages').read_text().split())}",
        # Without it Debian 12 takes the whole of Perl in, to merge /bin into /usr.
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
        # A half-written root folder is thrown away, so there is nothing to sync to disk for.
        "--dpkgopt=force-unsafe-io",
        *(f"--aptopt={line}" for line in apt_proxies()),
        f"--customize-hook={shlex.join(['copy-in', *programs, '/usr/local/bin'])}",
        f'--customize-hook={shlex.quote(str(HERE / "finish"))} "$1"',
        recipe.suite,
        str(root),
        *sources,
    ]
    said: list[str] = []
    try:
        for line in lines_of(command, BUILD_SECONDS):
            said.append(line)
            for report, phrase in PHASES.items():
                if line.startswith(f"I: {report}"):
                    progress(started, phrase)
    except (subprocess.SubprocessError, TimeoutError) as error:
        tail = "\n".join(f"    {line}" for line in said[-15:])
        raise SetupError(f"mmdebstrap did not finish ({reason_of(error)}); its last lines:\n{tail}") from error


def install_mmdebstrap() -> None:
    if shutil.which("mmdebstrap"):
        return
    if not shutil.which("apt-get"):
        raise SetupError("there is no apt here to build from: name a --registry, or bring the image with `docker load`")
    if os.geteuid() != 0:
        raise SetupError("building needs `apt-get install mmdebstrap uidmap` once, as root; or name a --registry")
    say("installing mmdebstrap, which makes a root folder from Debian packages")
    apt_get("update")
    apt_get("install", "-y", "--no-install-recommends", "mmdebstrap")


def apt_sources(suite: str) -> list[str]:
    """The machine's own package sources for `suite`, with its updates, as lines of a sources.list.

    Sources of others (drivers, cloud tools) are left out by their names.
    """
    if not read_apt_targets() and os.geteuid() == 0:
        # apt tells a target only when its lists have been fetched, and images come without them.
        apt_get("update")
    wanted = (suite, f"{suite}-updates", f"{suite}-security")
    sources = {
        f"deb {uri} {name} {part}" for name, uri, part in read_apt_targets() if name in wanted and part == "main"
    }
    if not any(f" {suite} main" in source for source in sources):
        raise SetupError(f"apt knows no packages of {suite or 'Debian'}: run `apt-get update`, or name a --registry")
    return sorted(sources)


def read_apt_targets() -> list[tuple[str, str, str]]:
    """Release name, address and component of each source that apt has fetched the lists of."""
    command = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI) $(COMPONENT)", "Created-By: Packages"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = (line.split() for line in answer.stdout.splitlines())
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]


def apt_proxies() -> list[str]:
    """apt's proxy settings as configuration lines: mmdebstrap reads the host's sources, not its settings."""
    answer = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=False)
    return [line for line in answer.stdout.splitlines() if re.match(r'Acquire::\w+::Proxy "\S', line, re.IGNORECASE)]


def apt_get(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if answer.returncode != 0:
        raise SetupError(f"`apt-get {arguments[0]}` failed: {answer.stderr.strip()[-2000:]}")


def python_version(root: Path) -> str:
    """`3.11`, from the link that Debian's python3 is, without starting it."""
    with tarfile.open(root) as tar:
        target = tar.getmember("./usr/bin/python3").linkname
    return target.removeprefix("python")


def config_lines() -> list[str]:
    """The image's settings, kept once, in the Dockerfile."""
    lines = (HERE / "Dockerfile").read_text().splitlines()
    return [line for line in lines if line.startswith(("ENV ", "USER ", "CMD "))]


def label_lines(recipe: Recipe, python: str) -> list[str]:
    labels = {
        "org.fastflow.runner.version": recipe.version,
        "org.fastflow.runner.inputs": recipe.inputs,
        "org.fastflow.pythons": python,
        "org.fastflow.uv": recipe.uv_version,
    }
    return [f"LABEL {name}={value}" for name, value in labels.items()]


def docker(*arguments: str, seconds: float = ENGINE_ANSWER_SECONDS) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=seconds)
    except FileNotFoundError as error:
        raise SetupError("there is no `docker` command: deploy/engine/engine.py ensure gets one") from error
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"the Docker engine did not answer `docker {arguments[0]}` within {seconds:.0f} s") from error


def lines_of(command: list[str], seconds: float, first_within: float | None = None) -> Iterator[str]:
    """Runs `command` and yields its lines as they come.

    Raises TimeoutError if it runs longer than `seconds`, or says nothing within `first_within`; CalledProcessError,
    with its last line as output, if it fails. Whatever ends this, the process has ended too.
    """
    deadline = time.monotonic() + seconds
    silent_until = deadline if first_within is None else time.monotonic() + first_within
    last, rest = "", b""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while selector.select(max(0.0, silent_until - time.monotonic())):
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    break
                silent_until = deadline
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    last = line.decode(errors="replace").strip() or last
                    yield last
            else:
                raise TimeoutError("no answer in time")
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, command, last)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait()


def reason_of(error: Exception) -> str:
    return str(error.output if isinstance(error, subprocess.CalledProcessError) else error)


def say(text: str) -> None:
    print(f"runner image: {text}", flush=True)


def progress(started: float, phrase: str) -> None:
    print(f"  {time.monotonic() - started:5.1f} s  {phrase}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
