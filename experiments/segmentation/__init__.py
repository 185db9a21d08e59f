"""Experiments of `jaxml.segmentation`."""
