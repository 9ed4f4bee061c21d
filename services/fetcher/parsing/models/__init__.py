"""Models: check a folder, convert a single file, count its words and weights."""
