"""Checks that take minutes to hours and are run by hand: python -m tests.stress.images, .training."""
