"""Training: the learner, its data, its optimizer and its checkpoints; the only place that knows Lightning."""
