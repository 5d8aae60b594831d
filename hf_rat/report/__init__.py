"""Finished runs as one page to share: an HTML file that needs no network."""
