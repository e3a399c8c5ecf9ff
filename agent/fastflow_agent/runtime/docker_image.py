"""What the runner image holds: which interpreters, which uv. Looked at once per image, by a container, then kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from docker.errors import APIError, ImageNotFound

from fastflow_agent.runtime.base import ImageMissing, RuntimeFault
from fastflow_agent.runtime.docker_engine import Client, Engine
from fastflow_agent.runtime.docker_options import DockerOptions

# uv itself says which interpreters it finds, so that what is promised here is what a run will get.
_LOOK = """
export HOME=/tmp UV_CACHE_DIR=/tmp/uv UV_NO_CONFIG=1 UV_NO_PROJECT=1 UV_PYTHON_DOWNLOADS=never
/usr/local/bin/uv --version && /usr/local/bin/uv python find && \
/usr/local/bin/uv python list --only-installed --output-format json
"""


@dataclass(frozen=True)
class RunnerImage:
    """A runner image. `interpreters` maps "3.11" and "3.11.2" alike to paths in it; `default` is one of these paths."""

    id: str
    uv_version: str
    default: str
    interpreters: dict[str, str]

    @property
    def python_versions(self) -> tuple[str, ...]:
        """The minor versions, ascending."""
        minors = {version for version in self.interpreters if version.count(".") == 1}
        return tuple(sorted(minors, key=lambda version: [int(part) for part in version.split(".")]))

    def interpreter(self, version: str) -> str:
        """Path of the interpreter for "3.11" or "3.11.2", or the image's own for ""; RuntimeFault if there is none."""
        if not version:
            return self.default
        if version not in self.interpreters:
            there = ", ".join(self.python_versions)
            raise RuntimeFault(f"The runner image has no Python {version}; it has {there}.")
        return self.interpreters[version]


def missing(image: str) -> ImageMissing:
    """The error for an image that is not there, with its fix."""
    return ImageMissing(
        f"The runner image {image} is not on this worker host. Build it with deploy/runner/build, pull it with "
        f"`docker pull {image}`, or set FASTFLOW_IMAGE to one that is there."
    )


def parse(image_id: str, output: str) -> RunnerImage:
    """What the look reported: uv's version, its own choice, and uv's JSON list of interpreters."""
    version, default, listing = output.split("\n", 2)
    interpreters: dict[str, str] = {}
    for found in json.loads(listing):
        # First come, first served: uv lists them in the order in which it would choose them.
        if found["implementation"] == "cpython" and found.get("variant", "default") == "default":
            parts = found["version_parts"]
            interpreters.setdefault(f"{parts['major']}.{parts['minor']}", found["path"])
            interpreters.setdefault(found["version"], found["path"])
    return RunnerImage(image_id, version.split()[1], default.strip(), interpreters)


def image_id(client: Client, image: str) -> str:
    """The image's id, or "" if it is not there. Blocks."""
    try:
        return str(client.inspect_image(image)["Id"])
    except ImageNotFound:
        return ""


class Images:
    """Knows the runner image. What was found is kept under the data folder, since looking costs as much as a run."""

    def __init__(self, options: DockerOptions, engine: Engine) -> None:
        self._options = options
        self._engine = engine
        self._folder = options.data_dir / "images"
        self._seen: dict[str, RunnerImage] = {}
        self._newest: RunnerImage | None = None

    async def current(self) -> RunnerImage:
        """The image as last seen, or as it is now if it was not seen. Raises as `known`."""
        if self._newest:
            return self._newest
        found = await self._engine.call(
            lambda client: image_id(client, self._options.image), self._options.times.question
        )
        return await self.known(found)

    async def known(self, found: str) -> RunnerImage:
        """The image, which now has the id `found` ("" if it is not there); looked at if it is new.

        Raises ImageMissing, or RuntimeFault for an image that is no runner.
        """
        self._newest = None
        if not found:
            raise missing(self._options.image)
        self._newest = await self._known(found)
        return self._newest

    async def _known(self, found: str) -> RunnerImage:
        if found not in self._seen:
            try:
                image = await self._engine.call(
                    lambda client: self._kept(found) or self._look(client, found), self._options.times.image_look
                )
            except APIError as error:
                raise RuntimeFault(f"The runner image could not be looked at: {error.explanation}") from error
            self._seen[found] = image
        return self._seen[found]

    def _look(self, client: Client, found: str) -> RunnerImage:
        container = client.create_container_from_config(_looking_container(found, self._options.container_uid))["Id"]
        try:
            client.start(container)
            status = client.wait(container, timeout=self._options.times.image_look)["StatusCode"]
            output = client.logs(container, stdout=True, stderr=False).decode(errors="replace")
            complaint = client.logs(container, stdout=False, stderr=True).decode(errors="replace").strip()
        finally:
            client.remove_container(container, force=True, v=True)
        if status != 0:
            raise RuntimeFault(
                f"The image {self._options.image} is no runner image: it needs /usr/local/bin/uv and a Python "
                f"({complaint or 'no word of why'})."
            )
        image = parse(found, output)
        self._keep(image)
        return image

    def _kept(self, found: str) -> RunnerImage | None:
        try:
            kept: Mapping[str, Any] = json.loads(self._path(found).read_text())
            return RunnerImage(**kept)
        except (OSError, ValueError, TypeError):
            return None

    def _keep(self, image: RunnerImage) -> None:
        path = self._path(image.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(image)))
        draft.replace(path)

    def _path(self, found: str) -> Path:
        return self._folder / f"{found.removeprefix('sha256:')}.json"


def _looking_container(found: str, user: int) -> dict[str, Any]:
    return {
        "Image": found,
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": [_LOOK],
        "User": f"{user}:{user}",
        "HostConfig": {
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "NetworkMode": "none",
            "Tmpfs": {"/tmp": ""},
            "LogConfig": {"Type": "json-file", "Config": {}},
        },
    }
