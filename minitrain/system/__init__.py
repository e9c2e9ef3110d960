"""What the wings need of the machine: files, locks, terminal, signals.

`files` replaces a file only by a complete successor, `lock` keeps other processes out,
`terminal` prints without ever failing, `signals` notes that a run is asked to end, and
`errors` are for people, each with its exit code; `memory` tells one that is short, and
`progress` has the bar.

This room imports nothing of minitrain, and the book does not import it.
"""
