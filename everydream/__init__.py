"""The command that people type, the demo, and the drawings that it and `tiny` are made of."""
