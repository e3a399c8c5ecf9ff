"""An SSH server on a free port of loopback that gives out Git repositories, in a process of its own.

Prints one JSON object, and ends with its input: what the library leaves behind at its end is nobody's warning.
"""

import asyncio
import json
import sys

import asyncssh


async def main() -> None:
    """Serves until the input ends."""
    host, key = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[host],
        authorized_client_keys=asyncssh.import_authorized_keys(key.export_public_key().decode()),
        process_factory=_serve,
        encoding=None,
    )
    port = server.get_port()
    facts = {
        "port": port,
        "host_key": f"[127.0.0.1]:{port} {host.export_public_key().decode().strip()}",
        "key": key.export_private_key().decode(),
    }
    print(json.dumps(facts), flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def _serve(process: "asyncssh.SSHServerProcess[bytes]") -> None:
    command, _, path = (process.command or "").partition(" ")
    if command != "git-upload-pack":
        process.exit(1)
        return
    packing = await asyncio.create_subprocess_exec(
        "git", "-c", "safe.directory=*", "upload-pack", path.strip("'"), stdin=-1, stdout=-1, stderr=-1
    )
    # The end of either output would else close the channel to the other, and a write after that the connection.
    await process.redirect(stdout=packing.stdout, stderr=packing.stderr, send_eof=False)
    await process.redirect_stdin(packing.stdin)
    await process.stdout.drain()
    await process.stderr.drain()
    process.exit(await packing.wait())


if __name__ == "__main__":
    asyncio.run(main())
