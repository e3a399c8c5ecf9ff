"""What the runner image holds: which interpreters, which uv. Looked at once per image, by a container, then kept."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog
from docker.errors import APIError, ImageNotFound, NotFound

from fastflow_agent.runtime.base import ImageMissing, RuntimeFault
from fastflow_agent.runtime.docker_engine import Client, Engine, EngineRefused
from fastflow_agent.runtime.docker_options import DockerOptions
from fastflow_agent.runtime.interpreters import Interpreters, look_script, parse

log = structlog.get_logger(__name__)

LABEL_LOOK = "org.fastflow.look"
"""On each container that looks: the id of its agent."""

LOOKS = 3
"""A clean-up job of the host may prune the container that looks before it has told; again and again is no accident."""


@dataclass(frozen=True)
class RunnerImage:
    """A runner image: its id ("sha256:…") and what is in it."""

    id: str
    interpreters: Interpreters


def missing(image: str) -> ImageMissing:
    """The error for an image that is not there, with its fix."""
    return ImageMissing(
        f"The runner image {image} is not on this worker host. Build it with deploy/runner/build, pull it with "
        f"`docker pull {image}`, or set FASTFLOW_IMAGE to one that is there."
    )


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
        self._sweeping = threading.Lock()
        self._swept = False
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
            except EngineRefused as error:
                raise RuntimeFault(
                    f"The image {self._options.image} is no runner image: it does not start ({error.words})."
                ) from error
            self._seen[found] = image
        return self._seen[found]

    def _look(self, client: Client, found: str) -> RunnerImage:
        self._sweep(client)
        looks_left = LOOKS
        while True:
            looks_left -= 1
            try:
                return self._look_once(client, found)
            except NotFound as error:
                if isinstance(error, ImageNotFound) or not looks_left:
                    raise

    def _sweep(self, client: Client) -> None:
        """Remove, once, what an earlier agent left that died while it looked, and so has to be followed by a look."""
        with self._sweeping:
            if self._swept:
                return
            filters = {"label": f"{LABEL_LOOK}={self._options.agent_id}"}
            for left in client.containers(all=True, filters=filters):
                # Gone, or about to be.
                with suppress(APIError):
                    client.remove_container(left["Id"], force=True, v=True)
            self._swept = True

    def _look_once(self, client: Client, found: str) -> RunnerImage:
        container = client.create_container_from_config(_looking_container(found, self._options))["Id"]
        try:
            client.start(container)
            status = client.wait(container, timeout=self._options.times.image_look)["StatusCode"]
            output = client.logs(container, stdout=True, stderr=False).decode(errors="replace")
            complaint = client.logs(container, stdout=False, stderr=True).decode(errors="replace").strip()
        finally:
            with suppress(NotFound):
                client.remove_container(container, force=True, v=True)
        if status != 0:
            raise RuntimeFault(
                f"The image {self._options.image} is no runner image: it needs /usr/local/bin/uv and a Python "
                f"({complaint or 'no word of why'})."
            )
        try:
            image = RunnerImage(found, parse(output))
        except ValueError as error:
            raise RuntimeFault(f"The image {self._options.image} is no runner image: {error}.") from error
        self._keep(image)
        return image

    def _kept(self, found: str) -> RunnerImage | None:
        try:
            kept: dict[str, Any] = json.loads(self._path(found).read_text())
            return RunnerImage(found, Interpreters(**kept))
        except (OSError, ValueError, TypeError):
            return None

    def _keep(self, image: RunnerImage) -> None:
        path = self._path(image.id)
        draft = path.with_suffix(".draft")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(asdict(image.interpreters)))
            draft.replace(path)
        except OSError as error:
            log.warning("what was found in an image is not kept, so the next agent looks again", error=str(error))

    def _path(self, found: str) -> Path:
        return self._folder / f"{found.removeprefix('sha256:')}.json"


def _looking_container(found: str, options: DockerOptions) -> dict[str, Any]:
    user = options.container_uid
    return {
        "Image": found,
        "Labels": {LABEL_LOOK: options.agent_id},
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["export HOME=/tmp UV_CACHE_DIR=/tmp/uv; " + look_script("/usr/local/bin/uv")],
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
