"""Texts in, encoded data sets and scores out. Nothing here knows of regularizers or trainers."""
