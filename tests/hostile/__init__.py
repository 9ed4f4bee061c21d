"""One rude key beside another that works: what the rude one can take from it, ``make hostile``."""
