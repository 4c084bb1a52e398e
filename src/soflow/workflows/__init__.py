"""What Python and the command line both do: train, load, sample, evaluate."""
