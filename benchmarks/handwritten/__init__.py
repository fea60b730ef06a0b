"""Models written by hand in plain MLX, with the parameter names of transformers."""
