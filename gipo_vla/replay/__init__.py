"""Replay of segments: what is stored, for how long, and what may be drawn."""
