"""Training: any objective, on any network, with one trainer and one checkpoint."""
