"""The command `everydream`, its demo, and the drawings that the demo and `tiny` use."""
