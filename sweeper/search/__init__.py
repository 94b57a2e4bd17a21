"""Search: what to try next and what to stop. The only room that knows Optuna."""
