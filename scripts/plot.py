"""Draw runs side by side: python scripts/plot.py runs/A runs/B --output curves.png"""

import sys
from pathlib import Path

import tyro


def main(runs: tyro.conf.Positional[tuple[Path, ...]], output: Path) -> int:
    """Loss, gradient norm and accuracy of some runs, in one picture.

    Args:
        runs: Run directories, as `scripts/train.py` makes them.
        output: The PNG file to write.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from minitrain.pictures.runs import draw_runs
    from minitrain.system.files import replacing

    curves = {}
    for run in runs:
        events = EventAccumulator(str(run), {"scalars": 0}).Reload()
        tags = events.Tags()["scalars"]
        if not tags:
            print(f"error: {run} holds no TensorBoard scalars", file=sys.stderr)
            return 2
        curves[run.name] = {tag: _curve(events.Scalars(tag)) for tag in tags}
    with replacing(output) as file:
        file.write(draw_runs(curves))
    print(f"wrote {output}")
    return 0


def _curve(scalars: list) -> tuple[list[int], list[float]]:
    return [point.step for point in scalars], [point.value for point in scalars]


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
