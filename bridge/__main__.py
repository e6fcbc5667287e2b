"""`python -m bridge`: the same as the command `edk-bridge`."""

from bridge.cli import main

main()
