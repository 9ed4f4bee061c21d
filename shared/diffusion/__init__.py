"""Stable Diffusion on disk and in memory: the only shared code that imports torch."""
