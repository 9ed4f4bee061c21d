"""The real and the in-memory worlds behind the ports."""
