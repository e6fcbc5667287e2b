"""`edk-bridge serve`: runs the bridge."""

import click
import structlog
import uvloop

from bridge import logs
from bridge.app import serve as run_bridge
from bridge.cli.common.errors import exit_on_error
from bridge.cli.common.options import (
    KUBERNETES_SKIPPED,
    GroupedCommand,
    effective_settings,
    exit_codes,
    setting_options,
    skipped_variables,
)
from bridge.config.settings import SETTINGS
from bridge.timing import DEFAULT, Timing


@click.command(
    cls=GroupedCommand,
    epilog=exit_codes(
        _0="A signal stopped the bridge.",
        _1="Another error.",
        _2="Settings, schema files or the certificate can't be used.",
        _3="The broker refuses: password, virtual host, permission or exchange.",
        _130="Ctrl-C, before the bridge listens.",
    ),
)
@setting_options(*SETTINGS)
@click.pass_context
def serve(context: click.Context, /, **flags: str | None) -> None:
    """Runs the bridge until Ctrl-C or SIGTERM.

    A setting can be a flag, an environment variable, or a line of the file .env. A variable whose name ends with _FILE
    names a file that has the value. In this help, brackets show the variable and the default of each flag.

    DURATION is a number with a unit, such as 500ms, 120s, 2m, 3h or 7d. BYTES is a size such as 4 MiB, 4 MB or 4194304.
    """
    # A test passes its own constants through the context.
    timing = context.find_object(Timing) or DEFAULT
    logs.never_block()
    with exit_on_error():
        settings = effective_settings(flags)
        logs.configure(settings.log_level, settings.log_format)
        if (names := skipped_variables()) is not None:
            structlog.get_logger("bridge").info(KUBERNETES_SKIPPED, names=names)
        uvloop.run(run_bridge(settings, timing))
