"""Shows runs on one HTML page, and their policies as pictures on a W&B dashboard."""
