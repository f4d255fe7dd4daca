"""Simulator workers, and the actor that turns their observations into segments.

Import the modules directly: worker processes import ``gipo_vla.rollout.worker``, and nothing here may pull
torch into them.
"""
