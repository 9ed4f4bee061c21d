"""Nobody is let in to what is not theirs."""
