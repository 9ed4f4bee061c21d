"""Fuzzing of the readers that take what strangers send: ``make fuzz``."""
