"""`python -m millpond.cli`: the same as the command `millpond`."""

from millpond.cli.main import main

if __name__ == "__main__":
    main()
