"""Import of other checkpoints: the paper's reference implementation, DiT and SiT."""
