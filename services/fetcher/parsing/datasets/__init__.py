"""Datasets: from a user's zip to checked images, a manifest and a report."""
