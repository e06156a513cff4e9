"""From a click log to a checkpoint, on the command line. Results go to stdout, progress and errors to stderr.

    python -m finetune sample --output data/sample
    python -m finetune train --data data/sample --base-model minilm --output checkpoints/mine
    python -m finetune evaluate --checkpoint checkpoints/mine --data data/sample/test.jsonl

Each command explains itself with --help. Run them from the repository's root.
"""

import argparse
import sys

from safetensors import SafetensorError

from finetune.commands import data, evaluation, training


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns 0 on success, 1 on bad input or a failed write, 2 on bad usage, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(
        "python -m finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (data, training, evaluation):
        group.add_commands(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted{'; ' if str(interrupt) else ''}{interrupt}", file=sys.stderr)
        return 130
    except (ValueError, OSError, SafetensorError) as error:  # this package's are ValueErrors; the last: a full disk
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
