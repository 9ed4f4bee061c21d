"""The trainer fine-tunes a Stable Diffusion."""
