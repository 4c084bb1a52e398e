"""Training: one trainer and one checkpoint format for all objectives and networks."""

import warnings

with warnings.catch_warnings():
    # tqdm warns about its notebook bars. soflow does not use them.
    warnings.filterwarnings("ignore", "IProgress not found")
    import accelerate as accelerate
