"""Real servers that the tests start for themselves and end again."""
