"""`make chaos`: plays the script of a seed, judges what is left, prints one line of totals."""

import argparse
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.chaos.evidence import Evidence
from tests.chaos.rules import violations
from tests.chaos.script import Script
from tests.chaos.stage import Stage

MINUTES = 10.0


def main() -> int:
    """Returns 1 where the checker finds anything."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="length of the script (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the script; the same one replays it")
    parser.add_argument("--folder", type=Path, default=None, help="where evidence goes; kept if given")
    parser.add_argument("--judge", type=Path, default=None, help="judge the evidence in this folder again")
    options = parser.parse_args()
    if options.judge:
        return judge(Evidence(options.judge))
    script = Script.of(secrets.randbelow(2**31) if options.seed is None else options.seed, options.minutes * 60)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="fastflow-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"chaos: seed {script.seed}, {options.minutes:g} minutes, evidence in {folder}", flush=True)
    with Stage(folder) as stage:
        stage.play(script)
        stage.finish()
    code = judge(Evidence(folder))
    if not code and not options.folder:
        shutil.rmtree(folder)
    return code


def judge(evidence: Evidence) -> int:
    """Prints what is wrong, then the line of totals."""
    found = violations(evidence)
    for violation in found:
        print(violation)
    print(totals(evidence, len(found)), flush=True)
    return 1 if found else 0


def totals(evidence: Evidence, found: int) -> str:
    """One line."""
    deeds = Counter(deed["what"] for deed in evidence.deeds)
    states = Counter(run["state"] for run in evidence.runs)
    repeated = sum(answer["what"] == "ACCEPTED" for answer in evidence.answers) - len(evidence.kinds)
    ended = ", ".join(f"{number} {state}" for state, number in states.most_common())
    done = [
        f"{len(evidence.runs)} runs ({ended})",
        f"{len(evidence.attempts)} attempts",
        f"{deeds['KILL']} kills",
        f"{deeds['STOP']} stops",
        f"{deeds['FREEZE']} freezes",
        f"{deeds['CUT'] + deeds['STALL']} cuts",
        f"{deeds['DRAIN']} drains",
        f"{len(evidence.cancelled)} cancels",
        f"{repeated} repeated requests",
        f"{sum(map(len, evidence.losses.values()))} losses",
        f"{len(evidence.journals)} journals",
        f"{found} violations",
    ]
    return f"chaos: seed {evidence.script['seed']}: " + ", ".join(done)


if __name__ == "__main__":
    sys.exit(main())
