"""The operations behind both the Python API and the command line: train, load, sample, evaluate."""
