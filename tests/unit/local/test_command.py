"""What the command line of a local run says before anything runs."""

from pathlib import Path

import pytest
from fastflow_agent.local.command import EXIT_USAGE, run_command


def test_a_mistyped_variable_is_told_also_where_the_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTFLOW_INDEXURL", "https://user:s3cret@host/simple")
    code = run_command(
        tmp_path,
        variables=(),
        secret_files=(),
        timeout=None,
        runtime="process",
        code_limit="lots",
        cache=None,
        config=None,
    )
    told = capsys.readouterr().err
    assert code == EXIT_USAGE
    assert "did you mean FASTFLOW_INDEX_URL?" in told
    assert "s3cret" not in told
