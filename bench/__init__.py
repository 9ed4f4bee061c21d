"""Benchmarks: numbers to read, not tests to pass."""
