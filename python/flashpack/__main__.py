"""`python -m flashpack` and the `flashpack` command."""

from ._cli.convert import convert, revert
from ._cli.look import metadata
from .cli import main

__all__ = ["convert", "main", "metadata", "revert"]

if __name__ == "__main__":
    main()
