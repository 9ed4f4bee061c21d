"""Whole folders, uploads and snapshots in an object store."""
