"""Launchable experiments, one file for each result; `python -m experiments` lists them.

Each is a script with a frozen `Config` and a `main(config)`: the same in a shell
(`python -m experiments.ssl.simclr_digits --help`) and in a notebook.
"""
