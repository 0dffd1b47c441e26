"""Trainings by other libraries, run by the Python of a virtual environment of theirs; see `benchmarks/peers.py`."""
