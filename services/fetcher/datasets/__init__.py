"""Datasets: from a user's zip to a checked dataset and its report."""
