"""Side-by-side timings, one script a question: `make bench`, or `python -m
benchmarks.augmentations`.
"""
