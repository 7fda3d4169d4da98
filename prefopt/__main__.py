"""`python -m prefopt` is the command `prefopt`."""

from prefopt.cli.app import main

main()
