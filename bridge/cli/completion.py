"""`edk-bridge completion`: prints a shell script that completes commands, options, files and update types."""

import click
from click.shell_completion import get_completion_class

from bridge.cli.common.options import exit_codes
from bridge.cli.common.output import echo

SHELLS = ("bash", "zsh", "fish")


@click.command(
    short_help="Prints the completion script for a shell.",
    epilog=exit_codes(_0="The script is printed.", _2="The shell is unknown."),
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, /, shell: str) -> None:
    """Prints a script for your shell, which then completes this command. Add a line to the file of your shell:

    \b
    eval "$(edk-bridge completion bash)"   # in ~/.bashrc; bash 4.4 or newer
    eval "$(edk-bridge completion zsh)"    # in ~/.zshrc, after compinit
    edk-bridge completion fish | source    # in ~/.config/fish/config.fish
    """
    script = get_completion_class(shell)
    assert script is not None
    echo(script(context.find_root().command, {}, "edk-bridge", "_EDK_BRIDGE_COMPLETE").source())
