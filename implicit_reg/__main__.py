"""`python -m implicit_reg` is the command `implicit-reg`."""

import sys


def main() -> None:
    from implicit_reg.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
