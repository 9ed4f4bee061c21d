"""The parsing child: all that reads the bytes of strangers; the parent imports none of it."""
