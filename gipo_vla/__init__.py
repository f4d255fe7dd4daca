"""Reinforcement learning of vision-language-action policies from replayed, stale data with GIPO."""
