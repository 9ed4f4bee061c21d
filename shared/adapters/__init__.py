"""Adapters: what the ports are connected to, in production and in memory."""
