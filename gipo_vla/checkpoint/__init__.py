"""Run state to disk and back."""
