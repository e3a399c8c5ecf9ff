"""`ffctl secrets`: values that runs get as environment variables, and nobody ever sees again."""

import sys

import click
from fastflow.ids import new_id
from fastflow.v1 import secrets_pb2
from rich.console import RenderableType

from ffctl import details, output, wording
from ffctl.connection import Connection
from ffctl.options import complete_pipeline, complete_secret, output_option, server_option
from ffctl.output import cell, table
from ffctl.session import ask, connected, pages

ALL = "all pipelines"


@click.group("secrets")
def group() -> None:
    """Sets, lists and deletes secrets."""


@group.command("set")
@click.argument("name", shell_complete=complete_secret)
@click.option(
    "--pipeline",
    "pipelines",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_pipeline,
    help="Pipeline that gets it; may be repeated.",
)
@click.option("--all-pipelines", is_flag=True, help="Every pipeline gets it.")
@click.option("--source", metavar="NAME", default="", help="Syncs of this source use it: TOKEN or SSH_KEY.")
@output_option
@server_option
@click.pass_context
def set_secret(
    context: click.Context, name: str, pipelines: tuple[str, ...], all_pipelines: bool, source: str, as_json: bool
) -> None:
    """Stores the secret NAME. Its value is asked for, or read from stdin (one last newline is dropped).

    \b
    Example: ffctl secrets set API_TOKEN --pipeline etl < token.txt
    """
    if (bool(pipelines), all_pipelines, bool(source)).count(True) != 1:
        raise click.UsageError("say who gets it: --pipeline NAME (repeatable), --all-pipelines or --source NAME")
    request = secrets_pb2.SetSecretRequest(
        name=name,
        pipelines=pipelines,
        all_pipelines=all_pipelines,
        source=source,
        value=_value(name),
        request_id=new_id(),
    )
    _stored(list(ask(context, "secrets", "SetSecret", request).secrets), as_json=as_json)


def _value(name: str) -> bytes:
    if sys.stdin.isatty():
        text: str = click.prompt(f"Value of {name}", hide_input=True, confirmation_prompt="Once more", err=True)
        return text.encode()
    value = sys.stdin.buffer.read()
    return value.removesuffix(b"\n").removesuffix(b"\r")


def _stored(secrets: list[secrets_pb2.Secret], *, as_json: bool) -> None:
    if as_json:
        output.listing("secrets", secrets)
    else:
        for secret in secrets:
            output.say(f"{secret.name} for {_whose(secret)}: version {secret.version} stored")
    # Those of sources no run gets.
    if any(not secret.masked and not secret.source for secret in secrets):
        output.say("warning: the value is too short to be masked: it appears in logs where a program prints it")


def _whose(secret: secrets_pb2.Secret) -> str:
    return f"the source {secret.source}" if secret.source else secret.pipeline or ALL


@group.command("list")
@output_option
@server_option
@click.pass_context
def list_secrets(context: click.Context, as_json: bool) -> None:
    """Lists names, scopes and versions; never values.

    \b
    Example: ffctl secrets list
    """

    async def work(connection: Connection) -> tuple[list[secrets_pb2.Secret], bool]:
        return await pages(connection, connection.secrets.ListSecrets, secrets_pb2.ListSecretsRequest(), "secrets")

    found, _ = connected(context, work)
    _show_list(found, as_json=as_json)


def _show_list(secrets: list[secrets_pb2.Secret], *, as_json: bool) -> None:
    if as_json:
        output.listing("secrets", secrets)
    elif secrets:
        now = details.seconds_now()
        grid = table("SECRET", "PIPELINE", "VERSION", "UPDATED", "IN LOGS")
        for secret in secrets:
            age = wording.ago(secret.update_time, now)
            grid.add_row(cell(secret.name), cell(_whose(secret)), str(secret.version), age, _in_logs(secret))
        output.show(grid)
    else:
        output.say("No secrets yet. Store one with: ffctl secrets set NAME --pipeline PIPELINE")


def _in_logs(secret: secrets_pb2.Secret) -> RenderableType:
    if secret.source:
        return cell(wording.UNKNOWN)
    return cell("masked") if secret.masked else cell("too short to be masked", "yellow")


@group.command("delete")
@click.argument("name", shell_complete=complete_secret)
@click.option(
    "--pipeline",
    "pipelines",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_pipeline,
    help="Delete it for this pipeline; may be repeated.",
)
@click.option("--all-pipelines", is_flag=True, help="Delete the one that every pipeline gets.")
@click.option("--source", metavar="NAME", default="", help="Delete the one that syncs of this source use.")
@server_option
@click.pass_context
def delete_secret(
    context: click.Context, name: str, pipelines: tuple[str, ...], all_pipelines: bool, source: str
) -> None:
    """Deletes the secret NAME. Without a scope, the only one there is.

    \b
    Example: ffctl secrets delete API_TOKEN --pipeline etl
    """
    request = secrets_pb2.DeleteSecretRequest(
        name=name, pipelines=pipelines, all_pipelines=all_pipelines, source=source, request_id=new_id()
    )
    ask(context, "secrets", "DeleteSecret", request)
    output.say(f"{name} is deleted" + ("" if source else "; runs that are under way keep it"))
