"""Measurements of speed: numbers to read, not tests to pass."""
