"""Files that are replaced as a whole, whatever becomes of the disk or the program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastflow.durable import replace_file


def test_a_file_that_can_not_be_replaced_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "note"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(path, "text")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_written_in_utf_8_whatever_the_locale_says(tmp_path: Path) -> None:
    path = tmp_path / "note"
    ascii_locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    program = "import sys, pathlib, fastflow.durable as d; d.replace_file(pathlib.Path(sys.argv[1]), '\\u00fc\\u2713')"
    subprocess.run([sys.executable, "-c", program, path], env={**os.environ, **ascii_locale}, check=True, timeout=60)
    assert path.read_bytes() == "ü✓".encode()
