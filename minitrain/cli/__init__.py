"""The commands: one file for each.

Start with `train`. A command reads its settings, does its work by the rooms below, and
turns what happened into words and an exit code.

This room imports everything, and nothing imports it but the scripts.
"""
