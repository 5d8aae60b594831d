"""Companion models and the recurrent layers that they stand on."""
