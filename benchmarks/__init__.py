"""Measurements, each against its rivals in one run; README.md beside this file has the results."""
