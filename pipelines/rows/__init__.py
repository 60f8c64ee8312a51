"""Rows of the papers' tables: what each needs and costs, the commands that run it, and our scores beside the published ones.

`papers/<system>.toml` has the rows of a system, `needs.toml` the datasets and weights that rows name. `papers` reads them, `steps`
turns a row into commands, `runner` runs them, `results` keeps what came out, `board` shows all of it.
"""
