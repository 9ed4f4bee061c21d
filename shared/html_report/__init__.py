"""``report.html``: a finished training on one page, which asks no other host for anything."""
