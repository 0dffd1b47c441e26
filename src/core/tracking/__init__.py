"""Trackers: where the curves, settings and results of a run are shown (TensorBoard, CSV, Weights & Biases, MLflow)."""
