"""Opens the sources that the settings name."""

import ssl
from collections.abc import Sequence
from pathlib import Path

from fastflow.pipelines.metadata import Limits

from fastflow_controlplane.errors import FailedPrecondition, FastFlowError
from fastflow_controlplane.sources.git import GitSource
from fastflow_controlplane.sources.mirror import Mirror, Upstream
from fastflow_controlplane.sources.mounted import MountedFolder
from fastflow_controlplane.sources.reader import not_stored
from fastflow_controlplane.sources.repository import SnapshotRepository, StorageFault
from fastflow_controlplane.sources.settings import SourceSettings
from fastflow_controlplane.sources.source import Source


def place_of(data_dir: Path, source: str) -> Path:
    """Returns the folder in which all that is kept of a source lies."""
    return data_dir / "sources" / source


def copy_of(data_dir: Path, source: str) -> Path:
    """Returns where the copy of a Git source lies."""
    return place_of(data_dir, source) / "repository.git"


def home_of(data_dir: Path, source: str) -> Path:
    """Returns the folder that libgit2 takes for its home while it fetches a source."""
    return place_of(data_dir, source) / "home"


def authorities(ca_bundle: Path | None) -> str:
    """Returns the file of the certificate authorities that Git servers are checked with, "" = the system's.

    Raises FailedPrecondition where it can not be used.
    """
    if ca_bundle is None:
        return ""
    try:
        ssl.create_default_context(cafile=ca_bundle)
    except OSError as fault:
        why = "it holds no certificate" if isinstance(fault, ssl.SSLError) else fault.strerror
        raise FailedPrecondition(
            f"the file {ca_bundle}, which ca_bundle names, can not be used: {why}; name a PEM file of certificates"
        ) from None
    return str(ca_bundle.absolute())


def open_sources(
    settings: Sequence[SourceSettings], data_dir: Path, defaults: Limits, max_code_bytes: int
) -> dict[str, Source]:
    """Opens the sources, by name, without reading them. Raises Unavailable where nothing can be kept of one."""
    try:
        return {each.name: _open(each, data_dir, defaults, max_code_bytes) for each in settings}
    except (OSError, StorageFault) as fault:
        error: FastFlowError = not_stored(data_dir, fault)
        raise error from fault


def _open(settings: SourceSettings, data_dir: Path, defaults: Limits, max_code_bytes: int) -> Source:
    place_of(data_dir, settings.name).mkdir(mode=0o700, parents=True, exist_ok=True)
    if settings.folder is not None:
        snapshots = SnapshotRepository(place_of(data_dir, settings.name) / "snapshots.git")
        return MountedFolder(settings.folder.absolute(), snapshots, defaults, max_code_bytes=max_code_bytes)
    upstream = Upstream(settings.url, settings.branch)
    mirror = Mirror(copy_of(data_dir, settings.name))
    return GitSource(settings.name, upstream, settings.path, mirror, defaults, max_code_bytes)
