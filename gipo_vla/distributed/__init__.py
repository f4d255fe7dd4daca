"""The process group that torchrun started, or one process alone; a few reductions over it."""
