"""`python -m torch2mlx`."""

from torch2mlx.cli import run

if __name__ == "__main__":
    run()
