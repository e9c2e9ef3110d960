"""One update of one weight, worked out as in a textbook.

Start with `worked`, which writes the lines. `arithmetic` computes them in exact
fractions, and `replay` makes a step of a run once more for its numbers.

This room imports `experiment` and what lies below it.
"""
