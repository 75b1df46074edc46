"""`python -m bench`: see `bench.command`. It imports nothing, since every child process reads this file again."""

if __name__ == "__main__":
    import sys

    from bench.command import main

    sys.exit(main())
