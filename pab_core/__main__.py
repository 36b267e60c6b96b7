"""`python -m pab_core` does what `pab` does."""

from .cli import main

if __name__ == "__main__":
    main()
