"""The learner: DeepSpeed engine, schedules, one update."""
