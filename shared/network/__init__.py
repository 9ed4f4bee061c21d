"""Guards for the addresses that users give."""
