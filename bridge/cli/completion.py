"""`edk-bridge completion`: prints the script with which a shell completes commands, options, files and update types."""

import click
from click.shell_completion import get_completion_class

from bridge.cli.common.output import echo

SHELLS = ("bash", "zsh", "fish")


@click.command(
    short_help="Prints what a shell needs to complete this.",
    epilog="Exit codes: 0 it is printed, 2 there is no such shell.",
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, /, shell: str) -> None:
    """Prints the script with which a shell completes this command. In the shell's own file:

    \b
    eval "$(edk-bridge completion bash)"   # in ~/.bashrc; bash 4.4 or newer
    eval "$(edk-bridge completion zsh)"    # in ~/.zshrc, after compinit
    edk-bridge completion fish | source    # in ~/.config/fish/config.fish
    """
    script = get_completion_class(shell)
    assert script is not None
    echo(script(context.find_root().command, {}, "edk-bridge", "_EDK_BRIDGE_COMPLETE").source())
