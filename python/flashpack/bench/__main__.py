"""`python -m flashpack.bench PATH`: what `flashpack bench PATH` does."""

import sys

from ..cli import main

if __name__ == "__main__":
    main(["bench", *sys.argv[1:]], prog_name="flashpack")
