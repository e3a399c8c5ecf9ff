"""The git of this machine, without what its users have set."""

import os
import subprocess
from pathlib import Path

SETTINGS = {
    # Else commits are signed, or hooks run, where somebody wants that of his own.
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "Ada"),
    **dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "ada@example.org"),
}


def git(folder: Path, *arguments: str) -> str:
    """Runs git in a folder and returns what it says."""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env={**os.environ, **SETTINGS}, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
