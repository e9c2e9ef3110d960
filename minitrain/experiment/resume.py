"""Continuing a run from what was saved of it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minitrain.experiment.reading import changes, from_toml
from minitrain.experiment.settings import Config
from minitrain.runs import checkpoint
from minitrain.runs.summary import Summary
from minitrain.system.errors import CheckpointError, SettingsError
from minitrain.system.terminal import say

MACHINE = ("device:", "threads:", "python:", "torch:")
"""Changes that may show in the last bits alone."""


def restore(
    config: Config,
    folder: Path,
    restore_parts: Callable[[Mapping[str, Any]], None],
    summary: Summary,
) -> tuple[int | None, Config]:
    """Restore the newest intact checkpoint; its step, or None where there is none.

    The settings returned have the cadence of the panel that was measured at the start.

    Raises CheckpointError where all are damaged or the newest does not fit the model,
    SettingsError where settings that change the result differ and this was not allowed.
    """
    for stray in folder.rglob(f".*.{'[0-9a-f]' * 16}.part"):
        stray.unlink()  # a file that a kill left unfinished; TensorBoard would read it
    found, faults = checkpoint.newest(folder / "checkpoints")
    if found is None:
        say(f"{folder} holds no checkpoint yet: the run begins anew")
        return None, config
    for fault in faults:
        say(f"{fault}; using step={found.step}")
    old = from_toml(found.state["settings"])
    free, bound = changes(old, config)
    if bound and not config.allow_changes:
        raise SettingsError(
            "these settings change the result, and cannot change in a resumed run "
            "unless by --allow-changes:\n  " + "\n  ".join(bound)
        )
    before, versions = found.state["summary"], summary.versions
    free += [
        f"{name}: {before['versions'].get(name)} -> {version}"
        for name, version in versions.items()
        if before["versions"].get(name) != version
    ]
    for change in free + bound:
        say(f"changed {change}")
    if any(change.startswith(MACHINE) for change in free):
        say("warning: the last bits may differ from those of the undisturbed run")
    try:
        restore_parts(found.state)
    except (RuntimeError, ValueError):
        raise CheckpointError(
            f"{found.path} does not fit the model that the settings describe"
        ) from None
    for name, value in before.items():
        setattr(summary, name, value)
    summary.versions = versions
    if bound:
        summary.changes.append({"step": found.step, "settings": bound})
    say(f"resumed step={found.step} path={found.path}")
    cadence = {k: v for k, v in config.instruments if v is None}
    cadence = {kind: getattr(old.instruments, kind) for kind in cadence}
    instruments = config.instruments.model_copy(update=cadence)
    return found.step, config.model_copy(update={"instruments": instruments})
