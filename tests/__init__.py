"""The tests; a package, so that they find each other and `experiments` from anywhere."""
