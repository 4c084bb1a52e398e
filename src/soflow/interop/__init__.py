"""Checkpoints of others: of the paper's reference implementation, of DiT and of SiT."""
