"""Training in plain torch: a generator of measurements. Knows no Ray, Optuna or W&B."""
