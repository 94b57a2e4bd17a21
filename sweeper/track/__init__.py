"""Where trials are followed beside the terminal: W&B, TensorBoard, MLflow."""
