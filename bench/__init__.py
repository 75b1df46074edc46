"""Speed and memory against the usual ways: `python -m bench`; the results are in docs/speed.md."""
