"""What a browser opens: the console, its session, and the API documents."""
