"""`python -m flashpack` and the `flashpack` command."""

from .cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
