"""Encoders that others trained: their weights are read, matched, and become runs of ours."""
