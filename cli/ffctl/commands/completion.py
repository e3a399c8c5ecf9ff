"""`ffctl completion`: the script that teaches a shell to complete ffctl's words."""

import click
from click.shell_completion import ShellComplete, get_completion_class

PROGRAM = "ffctl"
VARIABLE = "_FFCTL_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Prints the completion script of a shell.

    \b
    Example: source <(ffctl completion bash)
    fish:    ffctl completion fish > ~/.config/fish/completions/ffctl.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows the three shells"
    # Not kind.source(): the one for bash starts bash to look at its version.
    script = ShellComplete.source(kind(context.find_root().command, {}, PROGRAM, VARIABLE))
    click.echo(script)
