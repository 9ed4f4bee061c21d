"""Training beside a plain loop: ``python -m bench train``."""
