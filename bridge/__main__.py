"""The entry point of the command `edk-bridge`, and of `python -m bridge`."""

from bridge.interrupts import exit_on_interrupt


def main() -> None:
    """Runs the command and exits."""
    exit_on_interrupt()
    from bridge.cli import main as run  # noqa: PLC0415 - Ctrl-C may interrupt this import

    run()


if __name__ == "__main__":
    main()
