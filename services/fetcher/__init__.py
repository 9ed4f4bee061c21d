"""The fetcher downloads, checks and stages datasets and base models."""
