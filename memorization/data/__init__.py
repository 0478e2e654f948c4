"""Images by name, subsets, and views that (seed, purpose, image) decide."""
