"""`python -m fluxexp`, `accelerate launch -m fluxexp`, `torchrun -m fluxexp`."""

from fluxexp.cli import main

if __name__ == "__main__":
    main()
