"""Folders, uploads and snapshots in an object store."""
