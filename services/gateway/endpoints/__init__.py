"""The operations that the gateway answers over HTTP, a module for each group."""
