"""Datasets as plain values: manifest, captions, buckets and the plan of an epoch; no torch."""
