"""A run, from its settings to finished.json; one lifecycle for training and cloning."""
