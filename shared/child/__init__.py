"""A worker's child process: the parent's side, the child's side, and the records between them."""
