"""The trainer fine-tunes Stable Diffusion."""
