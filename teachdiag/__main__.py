"""`python -m teachdiag`, for launchers that start modules."""

from teachdiag.cli import main

if __name__ == "__main__":
    main()
