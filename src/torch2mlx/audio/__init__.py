"""Speech models that become folders of mlx-audio, whose ports are written by hand."""
