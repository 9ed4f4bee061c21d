"""The inferencer draws images from fine-tuned weights."""
