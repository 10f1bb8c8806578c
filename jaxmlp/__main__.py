"""`python -m jaxmlp`: the same as the command `jaxmlp`."""

from jaxmlp.cli import main

if __name__ == "__main__":
    main()
