"""Precision: what half the bits cost, and how little they need to."""
