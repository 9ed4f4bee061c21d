"""Hostile input of all kinds, for security tests and fuzzing."""
