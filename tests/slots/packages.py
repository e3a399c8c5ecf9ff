"""Packages that tests make: a wheel, or a source that a backend of its own builds."""

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping


def tiny_wheel(
    name: str, source: str, version: str = "1.0", more: Mapping[str, str] | None = None
) -> tuple[str, bytes]:
    """File name and content of a wheel with the one module `name`, and `more` files beside it."""
    file = f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    contents = {
        f"{name}.py": source,
        **(more or {}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_digest(text)},{len(text)}\n" for path, text in contents.items())
    contents[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    return file, _zip(contents)


def built_source(build: str, files: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """Files of a package that the module `build` builds, with nothing to install before, and `files` beside it."""
    project = b'[build-system]\nrequires = []\nbuild-backend = "build"\nbackend-path = ["."]\n'
    return {"pyproject.toml": project, "build.py": build.encode(), **(files or {})}


def source_archive(name: str, members: Mapping[str, bytes]) -> bytes:
    """A source distribution, version 1.0, of `members`."""
    info = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for path, data in {"PKG-INFO": info, **members}.items():
            member = tarfile.TarInfo(f"{name}-1.0/{path}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def _zip(contents: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in contents.items():
            archive.writestr(path, text)
    return buffer.getvalue()


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
