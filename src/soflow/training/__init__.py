"""Training: any objective, on any network, with one trainer and one checkpoint."""

import warnings

with warnings.catch_warnings():
    # It is about the bars of tqdm, which are not used here.
    warnings.filterwarnings("ignore", "IProgress not found")
    import accelerate as accelerate
