"""The experiment and the measurement; one noun of the field, or of training, a file."""
