"""What advice calls the settings: arguments in a loop, flags in the runner."""

SETTINGS = {
    "lr": "--optimizer.lr",
    "momentum": "--optimizer.momentum",
    "weight_decay": "--optimizer.weight-decay",
    "clip_norm": "--clip-norm",
    "warmup_steps": "--schedule.warmup",
    "batch_size": "--data.batch-size",
    "accumulate": "--accumulate",
    "epochs": "--epochs",
    "dropout": "--model.dropout",
}
"""The flag of every setting that advice names, by the name of its argument."""


def setting(name: str, value: str = "", *, as_flag: bool) -> str:
    """Return what a setting is called where it is made, with a value or without.

    >>> setting("clip_norm", "1", as_flag=False), setting("lr", as_flag=False)
    ('clip_norm=1', 'lr')
    >>> setting("clip_norm", "1", as_flag=True), setting("lr", as_flag=True)
    ('--clip-norm 1', '--optimizer.lr')
    """
    if as_flag:
        return f"{SETTINGS[name]} {value}".rstrip()
    return f"{name}={value}" if value else name
