"""`python -m flasepformer` is the command `flasepformer`."""

from flasepformer.cli import main

if __name__ == "__main__":
    main()
