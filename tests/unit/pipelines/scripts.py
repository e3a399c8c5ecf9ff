"""Scripts as uv itself runs them in a run: offline, so what it accepts asks for no package that this Python needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from uv import find_uv_bin


def uv_runs(source: bytes, folder: Path) -> subprocess.CompletedProcess[str]:
    """Has uv run a script, in the words and variables of the runner image."""
    script = folder / "main.py"
    script.write_bytes(source)
    return subprocess.run(
        [shutil.which("uv") or find_uv_bin(), "run", "--offline", script.name],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "UV_CACHE_DIR": str(folder / "cache"),
            "UV_PYTHON": sys.executable,
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_NO_PROJECT": "1",
            "UV_NO_CONFIG": "1",
        },
        capture_output=True,
        text=True,
    )


def script(*lines: str) -> bytes:
    """Returns a script whose header holds these lines of TOML."""
    comments = "".join(f"# {line}\n" if line else "#\n" for line in lines)
    return f"# /// script\n{comments}# ///\nprint('it runs')\n".encode()
