"""The inferencer: generates images with trained models."""
