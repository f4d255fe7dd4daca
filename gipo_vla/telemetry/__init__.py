"""Metrics, plots, console and wandb."""
