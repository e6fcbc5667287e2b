"""`edk-bridge completion`: what a shell needs to complete commands, options, files and update types."""

import click
from click.shell_completion import get_completion_class

from bridge.cli.common.streams import echo

SHELLS = {
    "bash": 'eval "$(edk-bridge completion bash)"   # in ~/.bashrc; bash 4.4 or newer',
    "zsh": 'eval "$(edk-bridge completion zsh)"    # in ~/.zshrc, after compinit',
    "fish": "edk-bridge completion fish | source    # in ~/.config/fish/config.fish",
}

_HOW = "\b\n" + "\n".join(SHELLS.values())


@click.command(
    short_help="Prints what a shell needs to complete this.",
    help=f"Prints the script with which a shell completes this command. In the shell's own file:\n\n{_HOW}",
    epilog="Exit codes: 0 it is printed, 2 there is no such shell.",
)
@click.argument("shell", type=click.Choice(tuple(SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Prints the script with which a shell completes this command."""
    script = get_completion_class(shell)
    assert script is not None
    echo(script(context.find_root().command, {}, "edk-bridge", "_EDK_BRIDGE_COMPLETE").source())
