"""Datasets without torch: manifest, captions, buckets, and the plan of an epoch."""
