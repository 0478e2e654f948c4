"""Measurements of trained encoders, one a file."""
