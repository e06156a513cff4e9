"""`python -m export`, and `python -m export plan`: see `export_command.py` and `plan_command.py`."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0 done, 1 refused (says why), 2 usage, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["plan"]:
        # In the serving container there is neither PyTorch nor ONNX Runtime, which the other imports.
        from export.tensorrt.command import main as plan  # noqa: PLC0415

        return plan(given[1:])
    from export.cli import main as export  # noqa: PLC0415

    return export(given)


if __name__ == "__main__":
    sys.exit(main())
