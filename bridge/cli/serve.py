"""`edk-bridge serve`: runs the bridge."""

import click
import structlog
import uvloop

from bridge import logs
from bridge.app import serve as run_bridge
from bridge.cli.common.errors import exit_on_error
from bridge.cli.common.options import KUBERNETES_SKIPPED, effective_settings, setting_options, skipped_variables
from bridge.config.settings import SETTINGS
from bridge.timing import DEFAULT, Timing


@click.command(
    epilog="Exit codes: 0 stopped as asked, 2 settings or schema files that can't be used, 3 the broker refuses "
    "(password, virtual host, permission, kind of exchange), 1 anything else."
)
@setting_options(*SETTINGS)
@click.pass_context
def serve(context: click.Context, /, **flags: str | None) -> None:
    """Runs the bridge until SIGTERM or SIGINT.

    Each setting may be given as a flag, as a variable of the environment, as a line of the file .env (or of the one
    that --env-file names), or, with _FILE behind the variable's name, in a file of its own. Brackets show the
    variable and the default.
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
