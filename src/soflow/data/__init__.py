"""Data sources, the cache of decoded images, latents, augmentation and batches."""
