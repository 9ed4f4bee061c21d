"""Shared by all services: messages, ports and their adapters, the workers' runtime, storage."""
