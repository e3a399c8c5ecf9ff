"""What is kept of a preparer's log."""

import os
from pathlib import Path

from fastflow_agent.runtime.preparer_end import OUTPUT_BYTES, TOO_LATE, read_output
from fastflow_agent.uvcache.refusal import refused


def test_of_a_log_larger_than_any_memory_its_end_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"the end")
    output = read_output(log, [])
    assert len(output) == OUTPUT_BYTES
    assert output.endswith(b"\0the end")


def test_a_login_is_masked_though_the_log_is_cut_within_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a login: s3cret-word" + b"x" * (OUTPUT_BYTES - 15) + b"s3cret-word")
    output = read_output(log, [b"s3cret-word"])
    assert len(output) == OUTPUT_BYTES
    assert output[:5] == b"****x"
    assert output.endswith(b"x" + b"*" * 11)


def test_what_is_said_of_one_that_took_too_long_is_one_of_the_faults_people_can_mend() -> None:
    fault = refused(TOO_LATE.encode(), "requirements.txt")
    assert fault.known
    assert "FASTFLOW_PREPARE_TIMEOUT" in str(fault)
