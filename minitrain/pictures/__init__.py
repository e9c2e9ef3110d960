"""Pictures, drawn by matplotlib: walks, what a classifier confuses, curves of runs.

Each file draws one kind of thing, as a figure that Jupyter shows inline; `animation`
makes walks move. `png` has what they share, colors, style and the figure itself, and
makes bytes of it where one is written or logged. No figure is pyplot's. matplotlib is
slow to import: import from here only where a picture is drawn.

This room imports the book alone.
"""
