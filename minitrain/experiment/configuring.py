"""The settings of the built-in experiment, to be made in Python: `Config(epochs=2)`."""

from minitrain.experiment.definition import builtin

Config = builtin().config
