"""Two networks in a loop of their own: a GAN that learns eight clouds on a ring.

    python experiments/gan.py [--run-dir runs/gan] [--steps 3000]

Started again, it goes on where it was. `tensorboard --logdir runs` shows both networks,
with an instrument panel each, and the samples while they find the clouds. This is a
program, and no experiment for `scripts/train.py`.

Result: 0.87 of the samples are inside of a cloud, and all eight clouds are found; about
15 s on one core.
"""

import argparse

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from minitrain import Recorder

ANGLES = torch.arange(8) * torch.pi / 4
CENTERS = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
STD = 0.1

bce = nn.functional.binary_cross_entropy_with_logits


def real(num: int) -> Tensor:
    """Points from clouds around the centers, shape (num, 2)."""
    return CENTERS[torch.randint(8, (num,))] + STD * torch.randn(num, 2)


def mlp(num_inputs: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(),
        nn.Linear(64, num_outputs),
    )  # fmt: skip


def score(points: Tensor) -> dict[str, float]:
    """How many points are in a cloud, within three of its STD, and of how many."""
    distances, nearest = torch.cdist(points, CENTERS).min(dim=1)
    is_inside = distances < 3 * STD
    found = nearest[is_inside].unique().numel()
    return {"samples/inside": is_inside.float().mean().item(), "samples/clouds": found}


def draw(points: Tensor) -> Figure:
    """The points, over real ones."""
    figure = Figure(figsize=(4, 4))
    axes = figure.subplots()
    axes.scatter(*real(1000).T, s=2, color="lightgray")
    axes.scatter(*points.T, s=2)
    axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="A GAN that learns clouds on a ring.")
    parser.add_argument("--run-dir", default="runs/gan")
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # of such small networks more would wait for each other
    torch.manual_seed(0)
    generator, discriminator = mlp(16, 2), mlp(2, 1)
    betas = (0.5, 0.999)
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=betas)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=betas)
    parts = {
        "generator": generator,
        "discriminator": discriminator,
        "g_optimizer": g_optimizer,
        "d_optimizer": d_optimizer,
    }
    size, yes, no = 128, torch.ones(128, 1), torch.zeros(128, 1)
    with Recorder(arguments.run_dir, parts, num_steps=arguments.steps) as run:
        for number in run.steps():
            x, noise = real(size), torch.randn(size, 16)
            fake = generator(noise).detach()

            def d_loss(x: Tensor = x, fake: Tensor = fake) -> Tensor:
                return bce(discriminator(x), yes) + bce(discriminator(fake), no)

            def g_loss(noise: Tensor = noise) -> Tensor:
                return bce(discriminator(generator(noise)), yes)

            with run.step(
                discriminator, d_optimizer, d_loss, name="discriminator"
            ) as step:
                d_optimizer.zero_grad()
                step.loss().backward()
                d_optimizer.step()
            with run.step(
                generator, g_optimizer, g_loss, num_samples=size, name="generator"
            ) as step:
                g_optimizer.zero_grad()
                step.loss().backward()
                g_optimizer.step()
            if number % 500 == 0:
                with torch.no_grad():
                    points = generator(torch.randn(1000, 16))
                run.log(score(points))
                run.show("samples", draw(points))
                print(number, score(points))


if __name__ == "__main__":
    main()
