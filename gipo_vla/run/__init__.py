"""A run from its settings to finished.json."""
