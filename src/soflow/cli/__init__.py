"""The command line: one thin file per command. `--help` and `--version` do not import torch."""
