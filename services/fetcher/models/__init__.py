"""From whatever names a model to a diffusers folder in the store."""
