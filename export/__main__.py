"""`python -m export` and `python -m export plan`: see cli.py and plan.py."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0 done, 1 refused (says why), 2 usage, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["plan"]:
        from export.plan import main as plan  # noqa: PLC0415

        return plan(given[1:])
    from export.cli import main as export  # noqa: PLC0415

    return export(given)


if __name__ == "__main__":
    sys.exit(main())
