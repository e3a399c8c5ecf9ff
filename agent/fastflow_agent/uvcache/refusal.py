"""What uv refused, in one sentence for people: its own words, and what to do."""

from __future__ import annotations

import re

MOST_CHARACTERS = 400
"""Of uv's words: the rest is in the log of the run."""

_ADVICE = (
    (
        r"401 Unauthorized|403 Forbidden|authentication credentials",
        "give this agent a login for that index, by FASTFLOW_INDEX_NETRC or in FASTFLOW_INDEX_URL",
    ),
    (r"parse requirement|parsing included file", "correct that line of {place}"),
    (
        r"^fastflow: preparing was stopped",
        "choose packages that have wheels, and fewer or smaller ones; see whether the index answers; or give them more "
        "time on this agent: FASTFLOW_PREPARE_TIMEOUT",
    ),
    (r"^fastflow: preparing", "choose packages that have wheels, and fewer or smaller ones"),
    (r"TOML parse error", "correct the header of main.py"),
    (
        r"Failed to build",
        "choose a version that has a wheel for this Python, or put a wheel made elsewhere beside main.py",
    ),
    (r"no wheels with a matching", "choose a version that has wheels for this Python, or another python_version"),
    (
        r"not found in the package registry",
        "correct the name in {place}, or name the index that has it on this agent: FASTFLOW_EXTRA_INDEX_URLS",
    ),
    (r"unsatisfiable|No solution found", "correct the versions in {place}"),
    (r"invalid peer certificate", "name your certificate authority on this agent: FASTFLOW_CA_BUNDLE"),
    (
        r"Distribution not found at",
        "name a file that lies in the pipeline's folder: a .whl, .tar.gz or .zip, as the folder of a package is not "
        "installed (its modules can be imported as they lie there)",
    ),
    (
        r"Git executable not found",
        "name an archive of that commit instead of the repository (https://HOST/…/COMMIT.tar.gz), as the runner image "
        "has no git; or give this agent an image of your own that has it: FASTFLOW_IMAGE",
    ),
    (
        r"Git operation failed",
        "see whether that repository can be reached from this agent, and that its revision is there",
    ),
    (
        r"error sending request|Failed to fetch|Failed to download",
        "see whether that address can be reached from this agent (FASTFLOW_INDEX_URL, FASTFLOW_HTTPS_PROXY)",
    ),
)
"""What stands in uv's words, the more particular first, and what to do then (uv 0.13); `{place}` names packages."""


class EnvironmentFault(Exception):
    """The needs of a pipeline can not be met. `output` is what uv said.

    `known`: it is one of those that people know what to do about, so nothing here is to be done about it.
    """

    def __init__(self, message: str, output: bytes, *, known: bool = True) -> None:
        super().__init__(message)
        self.output = output
        self.known = known


def refused(output: bytes, place: str) -> EnvironmentFault:
    """What to raise where uv has refused with `output` what `place` names, such as "requirements.txt"."""
    message = f"the requirements can not be installed: {_explain(output, place)}"
    return EnvironmentFault(message, output, known=bool(_advice(output)))


def _explain(output: bytes, place: str) -> str:
    """Returns the line of uv's output that says most (its error), the innermost cause, and what to do."""
    text = output.decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("error:", "×"))][:1] or lines[-1:] or ["uv said nothing"]
    causes = [line for line in lines if line.lower().startswith(("cause:", "caused by:"))][-1:]
    said = "; ".join([*errors, *causes])[:MOST_CHARACTERS]
    advice = _advice(output).replace("{place}", place)
    return f"{said.rstrip('.')}. To do: {advice}." if advice else said


def _advice(output: bytes) -> str:
    text = output.decode("utf-8", "replace")
    return next((advice for words, advice in _ADVICE if re.search(words, text, re.MULTILINE)), "")
