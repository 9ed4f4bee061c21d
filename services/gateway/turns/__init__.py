"""Whose turn it is: how many jobs are released to the workers, and which is next."""
