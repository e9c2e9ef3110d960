"""Data sets in memory: MNIST, Fashion-MNIST, and digits drawn here.

Start with `dataset`. `mnist` reads files that are exactly the published ones, fetched
by `download` where they are absent; `digits` needs none. `cache` keeps what was read.

This room imports the book and `system`.
"""
