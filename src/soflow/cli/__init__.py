"""The command line: one thin file a command. Only commands that compute import torch."""
