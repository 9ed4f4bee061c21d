"""Models: from a name or URL to a diffusers folder in the store."""
