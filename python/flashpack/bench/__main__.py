"""`python -m flashpack.bench`."""

from . import main

main()
