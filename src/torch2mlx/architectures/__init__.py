"""What each model architecture needs on its way to MLX."""
