"""The command line: one thin file per command. Only commands that compute import torch."""
