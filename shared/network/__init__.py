"""Checks of the addresses that users give."""
