"""What to run on a GPU machine for ten minutes, without a network: see measure.sh."""
