"""What clients call: one module for each group of HTTP operations."""
