"""Tasks: what an input is, what a head must predict, the loss and the metrics. Looked up by name."""
