"""One update of one weight, worked out as in a textbook.

Start with `worked`, which writes the lines. `arithmetic` computes them in exact
fractions; `replay` makes a step of a run once more, and `look` takes the numbers of one
weight there, or of a walk. `walks` tells of whole walks.

This room imports `experiment` and what lies below it.
"""
