"""`python -m torch2mlx`."""

from torch2mlx.cli import main

if __name__ == "__main__":
    main()
