"""Fundamentals: pictures of small ideas."""
