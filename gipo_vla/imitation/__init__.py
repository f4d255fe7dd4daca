"""Demonstrations and the cloning of policies from them. Imports nothing: its workers do without torch."""
