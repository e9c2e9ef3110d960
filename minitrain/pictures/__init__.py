"""Pictures, drawn by matplotlib: walks, what a classifier confuses, curves of runs.

Each file draws one kind of thing, and `png` makes bytes of it. matplotlib is slow to
import: import from here only where a picture is drawn.

This room imports the book alone.
"""
