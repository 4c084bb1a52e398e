"""`python -m soflow`, which is also what torchrun and accelerate launch start."""

from soflow.cli.main import main

if __name__ == "__main__":
    main()
