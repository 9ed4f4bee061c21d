"""What the command line shows, in words and lines; pure functions but for the display itself."""
