"""What a pipeline finds under /fastflow, /tmp and /uvcache, and what it can do to it."""

import ast
import json
import stat
import textwrap
from pathlib import Path

from fastflow_agent.model import Limits

from tests.slots import Workshop

MIB = 1 << 20

TAMPERING = """
    import json, os, shutil

    def attempt(action):
        try:
            action()
            return "done"
        except OSError as error:
            return error.strerror

    def replace(path):
        open("/tmp/mine", "w").close()
        os.replace("/tmp/mine", path)

    def link(path):
        os.unlink(path)
        os.symlink("/etc/passwd", path)

    actions = {
        "remove": lambda path: shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path),
        "rename": lambda path: os.rename(path, path + ".away"),
        "replace": replace,
        "link": link,
        "write": lambda path: open(path, "r+").write("x"),
        "create in": lambda path: open(path + "/x", "w"),
    }
    tried = {
        f"{name} {path}": attempt(lambda: action(path))
        for path in TARGETS for name, action in actions.items()
    }
    print(json.dumps(tried))
"""


async def test_the_wrapper_and_the_code_can_not_be_changed(workshop: Workshop) -> None:
    targets = ["/fastflow", "/fastflow/start", "/fastflow/await", "/fastflow/code", "/fastflow/code/main.py"]
    slot = workshop.slot("TARGETS = " + json.dumps(targets) + "\n" + textwrap.dedent(TAMPERING))
    ended = await slot.run()
    assert "done" not in json.loads(ended.text).values()
    assert {path.name for path in slot.spec.code.iterdir()} == {"main.py"}


async def test_log_out_and_env_can_not_be_removed_renamed_replaced_or_turned_into_links(workshop: Workshop) -> None:
    targets = ["/fastflow/log", "/fastflow/out", "/fastflow/env"]
    slot = workshop.slot("TARGETS = " + json.dumps(targets) + "\n" + textwrap.dedent(TAMPERING))
    ended = await slot.run()
    paths = slot.spec.paths
    tried = json.loads(ended.text.splitlines()[-1].lstrip("x"))
    moved = {what: how for what, how in tried.items() if what.split()[0] in ("remove", "rename", "replace", "link")}
    assert "done" not in moved.values()
    assert stat.S_ISREG(paths.log.lstat().st_mode)
    assert [stat.S_ISDIR(path.lstat().st_mode) for path in (paths.out, paths.env)] == [True, True]


async def test_out_is_kept_for_the_host(workshop: Workshop) -> None:
    slot = workshop.slot("open('/fastflow/out/result.txt', 'w').write('42')")
    await slot.run()
    assert (slot.spec.paths.out / "result.txt").read_text() == "42"


async def test_what_is_written_to_tmp_is_no_memory(workshop: Workshop) -> None:
    slot = workshop.slot(
        """
        block = b"x" * (1 << 20)
        with open("/tmp/big", "wb") as file:
            for _ in range(300):
                file.write(block)
        print("written")
        """,
        limits=Limits(2000, 200 * MIB),
    )
    ended = await slot.run()
    assert (ended.exit_code, ended.text) == (0, "written")
    assert (slot.spec.paths.tmp / "big").stat().st_size == 300 * MIB


async def test_a_program_in_tmp_can_be_executed(workshop: Workshop) -> None:
    ended = await workshop.slot("""
        import os, subprocess
        with open("/tmp/tool", "w") as file:
            file.write("#!/bin/sh\\necho ran\\n")
        os.chmod("/tmp/tool", 0o755)
        subprocess.run(["/tmp/tool"], check=True)
    """).run()
    assert ended.text == "ran"


async def test_what_a_pipeline_does_to_the_uv_cache_is_gone_with_its_slot(workshop: Workshop) -> None:
    slot = workshop.slot("""
        import os, shutil
        open("/uvcache/mine", "w").write("x")
        for entry in os.listdir("/uvcache"):
            path = "/uvcache/" + entry
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        print(os.listdir("/uvcache"))
    """)
    before = _content(workshop.cache)
    ended = await slot.run()
    assert ended.text == "[]"
    assert _content(workshop.cache) == before


async def test_mounts_of_the_slot_are_all_there_are(workshop: Workshop) -> None:
    ended = await workshop.slot("""
        ours = ("/fastflow", "/tmp", "/uvcache")
        lines = [line.split() for line in open("/proc/self/mounts")]
        print({line[1]: line[3].split(",")[0] for line in lines if line[1].startswith(ours)})
    """).run()
    assert ast.literal_eval(ended.text) == {
        "/fastflow": "ro",
        "/fastflow/code": "ro",
        "/fastflow/env": "rw",
        "/fastflow/log": "rw",
        "/fastflow/out": "rw",
        "/tmp": "rw",
        "/uvcache": "rw",
    }


async def test_links_left_in_the_slots_folders_are_not_followed_by_the_host(workshop: Workshop, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o777)
    (victim / "precious").write_text("as it was")
    slot = workshop.slot(f"""
        import os
        for folder in ("/fastflow/env", "/fastflow/out", "/tmp"):
            for name in ("release", "environment", "environment.draft", "failed", "x"):
                os.symlink({str(victim)!r}, folder + "/" + name)
    """)
    ended = await slot.run()
    assert ended.exit_code == 0
    assert await slot.runtime.was_released(slot.id)
    await slot.runtime.release(slot.id, {"A": "b"})
    await slot.runtime.remove(slot.id)
    assert (victim / "precious").read_text() == "as it was"
    assert [path.name for path in victim.iterdir()] == ["precious"]


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
