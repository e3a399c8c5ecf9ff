"""How uv is called: settings that hold always, requirements where there are some, a cache nobody else sees."""

import json
import shutil
from pathlib import Path

import pytest
from fastflow_agent.runtime.base import Egress, PreparerSpec, RuntimeFault
from fastflow_agent.runtime.docker import DockerRuntime

from tests.slots import Workshop, tiny_wheel

UID = 1000
ALWAYS = {
    "UV_NO_PROJECT": "1",
    "UV_NO_CONFIG": "1",
    "UV_PYTHON": "/usr/bin/python3",
    "UV_PYTHON_DOWNLOADS": "never",
    "UV_CACHE_DIR": "/uvcache",
    "UV_LINK_MODE": "symlink",
}
ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)))"


async def test_uvs_settings_hold_whatever_a_run_says(workshop: Workshop) -> None:
    ended = await workshop.slot(ENVIRONMENT).run(dict.fromkeys(ALWAYS, "other"))
    seen = json.loads(ended.text)
    assert {name: seen[name] for name in ALWAYS} == ALWAYS


async def test_output_is_unbuffered_unless_the_run_wants_otherwise(workshop: Workshop) -> None:
    assert json.loads((await workshop.slot(ENVIRONMENT).run()).text)["PYTHONUNBUFFERED"] == "1"
    overridden = await workshop.slot(ENVIRONMENT).run({"PYTHONUNBUFFERED": ""})
    assert json.loads(overridden.text)["PYTHONUNBUFFERED"] == ""


async def test_uv_is_the_program_and_it_runs_main(workshop: Workshop) -> None:
    slot = workshop.slot("""
        import os
        print(open(f"/proc/{os.getppid()}/cmdline").read().split("\\0")[:-1])
    """)
    assert (await slot.run()).text == "['/usr/local/bin/uv', 'run', '--offline', 'main.py']"


async def test_requirements_are_named_where_there_are_some(workshop: Workshop) -> None:
    file, wheel = tiny_wheel("tinything", "ANSWER = 42\n")
    files = {"requirements.txt": f"./{file}\n".encode(), file: wheel}
    cache = await workshop.prepare("requirements", UID, files=files)
    main = "import tinything; print(tinything.ANSWER, tinything.__file__)"
    slot = workshop.slot(main, files=files, cache=cache)
    ended = await slot.run()
    # A wheel in the code's own folder is never taken from the cache: uv says that it installs it.
    answer, path = ended.text.splitlines()[-1].split()
    assert (ended.exit_code, answer) == (0, "42")
    assert path.startswith("/uvcache/")


async def test_a_header_in_main_is_obeyed(workshop: Workshop) -> None:
    file, wheel = tiny_wheel("headerthing", "ANSWER = 43\n")
    header = f'# /// script\n# dependencies = ["headerthing @ file:///fastflow/code/{file}"]\n# ///\n'
    cache = await workshop.prepare("header", UID, main=header, files={file: wheel})
    slot = workshop.slot(f"{header}import headerthing\nprint(headerthing.ANSWER)\n", files={file: wheel}, cache=cache)
    assert (await slot.run()).text.splitlines()[-1] == "43"


async def test_a_project_and_a_configuration_beside_main_are_not_heeded(workshop: Workshop) -> None:
    project = b'[project]\nname = "x"\nversion = "1"\ndependencies = ["no-such-package"]\n'
    files = {"pyproject.toml": project, "uv.toml": b'index-url = "http://192.0.2.1/simple"\n'}
    ended = await workshop.slot("print('ran')", files=files).run()
    assert (ended.exit_code, ended.text) == (0, "ran")


async def test_a_python_the_image_has_not_is_refused_by_name(workshop: Workshop) -> None:
    slot = workshop.slot("print('ran')", python_version="2.7")
    await slot.runtime.prepare_folders(slot.spec)
    with pytest.raises(RuntimeFault, match=r"no Python 2\.7 here; there is 3\.11"):
        await slot.runtime.create(slot.spec)


async def test_a_python_the_image_has_is_used_by_runs_and_by_what_prepares_for_them(workshop: Workshop) -> None:
    # It is the image's only one, but uv knows it by two paths: this is not the one that is used unless asked for.
    asked_for = "/usr/bin/python3.11"
    assert asked_for != ALWAYS["UV_PYTHON"]
    main = "import os, sys; print(os.environ['UV_PYTHON'], sys.version_info[:2])"
    ended = await workshop.slot(main, python_version="3.11").run()
    assert ended.text == f"{asked_for} (3, 11)"
    cache = workshop.new_cache("python", UID)
    spec = PreparerSpec("python", workshop.code("python", main, {}), cache, python_version="3.11")
    assert (await workshop.runtime.run_preparer(spec)).output.decode().split()[0] == asked_for


async def test_what_uv_refuses_is_a_preparers_result_with_uvs_own_words(workshop: Workshop) -> None:
    code = workshop.code("refused", "", {"requirements.txt": b"./not-there.whl\n"})
    spec = PreparerSpec("refused", code, workshop.new_cache("refused", UID))
    result = await workshop.runtime.run_preparer(spec)
    assert result.exit_code not in (0, 125)
    assert not result.offline
    assert b"not-there.whl" in result.output


async def test_a_preparer_takes_settings_of_its_own(workshop: Workshop) -> None:
    file, wheel = tiny_wheel("compiled", "ANSWER = 44\n")
    code = workshop.code("settings", "", {"requirements.txt": f"./{file}\n".encode(), file: wheel})
    cache = workshop.new_cache("settings", UID)
    environment = {"UV_LINK_MODE": "hardlink", "UV_COMPILE_BYTECODE": "1"}
    result = await workshop.runtime.run_preparer(PreparerSpec("settings", code, cache, environment=environment))
    assert (result.exit_code, result.offline) == (0, True), result.output
    assert [path.name for path in cache.rglob("compiled*.pyc")]


async def test_a_preparer_leaves_nothing_but_the_cache(workshop: Workshop) -> None:
    await workshop.prepare("tidy", UID)
    assert not list((workshop.folder / "preparers").iterdir())
    assert not list(workshop.env_dir.glob("*prepare*"))
    assert await workshop.runtime.slots() == {}


async def test_proxies_index_and_certificates_reach_runs_by_the_names_programs_know_and_no_login_of_the_index_does(
    docker_options: object, empty_cache: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "ca.pem"
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", bundle)
    egress = Egress(
        network="none",
        ca_bundle=bundle,
        http_proxy="http://user:word@proxy:3128",
        https_proxy="http://proxy:3129",
        no_proxy="localhost,.internal",
        index_url="https://user:index-word@index/simple",
    )
    options = docker_options(egress=egress)
    runtime = DockerRuntime(options)
    workshop = Workshop(runtime, options.data_dir, options.env_dir, empty_cache)
    main = "import json, os; print(json.dumps([dict(os.environ), len(open(os.environ['SSL_CERT_FILE']).read())]))"
    try:
        seen, authorities = json.loads((await workshop.slot(main).run()).text)
    finally:
        await workshop.clear()
        await runtime.aclose()
    assert authorities == len(bundle.read_text())
    expected = {
        **dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), "/fastflow/ca.pem"),
        **dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://user:word@proxy:3128"),
        **dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://proxy:3129"),
        **dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,.internal"),
        "UV_DEFAULT_INDEX": "https://index/simple",
    }
    assert {name: seen.get(name) for name in expected} == expected
    assert not any("index-word" in value for value in seen.values())
