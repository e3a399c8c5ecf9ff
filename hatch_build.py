"""Build hook: generates the gRPC stubs from proto/ into the Python client on install.

Generated code is never committed, so that it can not differ from the protocol it was made from.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateStubs(BuildHookInterface):
    """Runs protoc for every file under proto/, before a wheel or an editable install is made."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generates `*_pb2.py`, `*_pb2_grpc.py` and their type stubs; raises RuntimeError when protoc fails."""
        generate(Path(self.root))


def generate(root: Path) -> None:
    """Generates all stubs of the checkout `root` into its clients/python folder."""
    import grpc_tools
    from grpc_tools import protoc

    proto = root / "proto"
    target = root / "clients" / "python"
    files = sorted(str(path.relative_to(proto)) for path in proto.rglob("*.proto"))
    bundled = Path(grpc_tools.__file__).parent / "_proto"
    # In an isolated build the plugin is not beside the interpreter, but on the PATH that the installer made for it.
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    plugin = shutil.which("protoc-gen-mypy_grpc", path=places)
    arguments = [
        "protoc",
        f"--proto_path={proto}",
        f"--proto_path={bundled}",
        f"--plugin=protoc-gen-mypy_grpc={plugin}",
        f"--python_out={target}",
        f"--pyi_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_grpc_out={target}",
        *files,
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc could not generate the stubs; its message stands above")
    (target / "fastflow" / "agent" / "__init__.py").touch()


if __name__ == "__main__":
    generate(Path(__file__).parent)
