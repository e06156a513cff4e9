"""The commands of `clickbert`. Each module has HELP, `add_options(parser)` and `run(arguments)`, the exit status."""
