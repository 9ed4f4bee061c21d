"""The child's side: the training loop and its parts, which know folders only."""
