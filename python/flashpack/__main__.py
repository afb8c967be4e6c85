"""`python -m flashpack` and the `flashpack` command."""

from .cli import convert, main, metadata, revert

__all__ = ["convert", "main", "metadata", "revert"]

if __name__ == "__main__":
    main()
