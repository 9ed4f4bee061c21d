"""Drawing beside the stock pipeline: ``python -m bench draw``."""
