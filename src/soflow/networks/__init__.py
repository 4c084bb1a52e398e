"""Networks F(x, t, s, labels, augment), one contract for all (soflow/symbols.py: Net)."""
