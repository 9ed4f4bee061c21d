"""What every worker does with a message: claim it, work on it, report the outcome."""
