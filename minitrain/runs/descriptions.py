"""What TensorBoard says of a curve: what it is, its formula, and what is healthy.

The letters are those of `minitrain.tags`: g is the gradient before clipping, g' the one
that the update uses, theta and theta' are the parameters before and after the update,
and u = theta' - theta is the update.
"""

from typing import Any

from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.image import plugin_data_pb2

from minitrain import tags

# Classes that protobuf makes at run time, where no type checker sees them.
DataClass: Any = vars(summary_pb2)["DataClass"]
ImageData: Any = vars(plugin_data_pb2)["ImagePluginData"]

KINDS = {
    "simple_value": ("scalars", "DATA_CLASS_SCALAR"),
    "image": ("images", "DATA_CLASS_BLOB_SEQUENCE"),
    "histo": ("histograms", "DATA_CLASS_TENSOR"),
}
"""Which page of TensorBoard shows a value of which kind, and what it takes it for."""

OF_EVERY = {
    tags.GRAD_NORM: "Norm of the gradient, |g|, before clipping{of}: how steep the "
    "loss is. Healthy: falling slowly or level. Below 1e-6 in early layers it "
    "vanishes; growing from step to step it explodes.",
    tags.UPDATE_NORM: "Norm of the update, |u| = |theta' - theta|{of}: how far a step "
    "goes. Healthy: it follows the learning rate.",
    tags.UPDATE_RATIO: "Update against parameters, |u| / |theta|{of}. Healthy: about "
    "1e-3. From 1e-2 on a step overwrites what was learned; below 1e-5 nothing moves.",
    tags.ZERO_SHARE: "Share of the gradient's elements that are exactly 0{of}. "
    "Healthy: low and level; 1 is a dead layer.",
    tags.GRADIENT_SIZES: "Histogram of log2 |g_i|{of}: how large the elements of the "
    "gradient are. Healthy: one hill that keeps its place.",
}
"""Of a quantity that the whole vector and each parameter have; {of} names which."""

OF_ONE = {
    tags.DESCENT_COSINE: "cos(u, -g): the angle between the step and steepest descent. "
    "1 is straight downhill, 0 along a level set, negative uphill. Healthy: positive; "
    "momentum makes it smaller.",
    tags.PREVIOUS_COSINE: "cos(g, the gradient of the step before). Healthy: around 0 "
    "or above. Near -1 the steps bounce from wall to wall: the learning rate is large.",
    tags.MOMENTUM_SHARE: "|d - g'| / |d|, where d = -u / lr is the direction taken: "
    "how much of the step is not this step's gradient. Healthy: near the momentum.",
    tags.EFFECTIVE_LR: "|u| / |g'|: the learning rate that goes as far without "
    "momentum. Under a constant gradient it tends to lr / (1 - momentum).",
    tags.DECAY_SHARE: "|weight_decay theta| / |g'|: the part of the gradient used that "
    "the loss does not have. Healthy: well below 1.",
    tags.LEFT_OVER: "1 where the gradient of an earlier update was still there when "
    "the next one came. Healthy: no such curve.",
    tags.DISTANCE: "|theta' - theta_0|: the distance from the start. Healthy: rising "
    "more and more slowly.",
    tags.EFFICIENCY: "The distance from the start over the length of the path: 1 is a "
    "straight line. Healthy: falling slowly; near 0 the path turns in circles.",
    tags.CLIP_FRACTION: "Share of the steps since the last look whose gradient was "
    "clipped. Healthy: few, or none.",
    tags.tag(tags.AUDIT, "promised"): "P = -g . u: the decrease of the batch's loss "
    "that the gradient promises. Healthy: positive.",
    tags.tag(tags.AUDIT, "delivered"): "D = L(theta) - L(theta'), on the same batch: "
    "the decrease that the step delivers. Healthy: positive, and close to the promise.",
    tags.AUDIT_LOSS: "L(theta'), the loss of the step's own batch after the update. "
    "Healthy: below the one before.",
    tags.AUDIT_RATIO: "D / P, the decrease delivered over the one "
    "promised. Healthy: between 0.5 and 1. 1 is a straight slope, 0 a step that gained "
    "nothing, below 0 one that made it worse: the learning rate is too large.",
    tags.AUDIT_CURVATURE: "2 (P - D) / |u|^2: the second derivative of the "
    "loss along the step. Healthy: below 2 / lr.",
    tags.LARGEST_STABLE_LR: "2 (1 + momentum) / ((1 - dampening) curvature), with "
    "Nesterov's momentum 2 (1 + momentum) / ((1 + 2 momentum) curvature): the learning "
    "rate at which a step along this curvature starts to climb. Healthy: above the "
    "learning rate.",
    tags.AUDIT_MARGIN: "lr / the largest stable one. Healthy: below 1, the line; above "
    "it steps along this curvature grow from one to the next.",
    tags.AUDIT_LINE: "The constant 1, to be seen beside `audit/ratio` (all that was "
    "promised) and `audit/margin` (the limit of stability).",
    tags.TRUTH_ERROR: "|claimed - measured| / the larger of both, of the slope along "
    "the whole gradient: g . v against differences of the loss. Healthy: below 0.05.",
    tags.TRUTH_WORST_ERROR: "The same error along the part of each parameter, the "
    "largest one. Healthy: below 0.05; the gradient of a kink may have more.",
    tags.NOISE_SCALE: "tr(Sigma) / |G|^2: the number of samples in a batch whose "
    "gradient is as large as its noise. Healthy: about the batch size, the line. Far "
    "above it larger batches allow longer steps; far below it they are wasted.",
    tags.BATCH_SIZE: "Samples in the batch of an update, B, to be seen beside "
    "`noise/scale`.",
    tags.SIGNAL_SHARE: "|G|^2 / (|G|^2 + tr(Sigma) / B): the part of |g|^2 that is not "
    "noise. Healthy: falling from 1 as the loss does; 0.5 where the noise scale is B.",
    tags.CONFUSION: "Counts of the test set: rows are what it is, columns what it was "
    "taken for; the color is the share of the row. Healthy: numbers on the diagonal.",
    "mistakes/test": "The test samples that the model was surest and wrong about.",
    "weights/first_layer": "What each unit of the first layer looks for. Healthy: "
    "strokes and edges; pure noise is a unit that has learned little.",
    tags.LR: "Learning rate: theta <- theta - lr * direction.",
    tags.THROUGHPUT: "Training samples per second, without tests and checkpoints. "
    "Healthy: level.",
    tags.WAITING: "Share of the steps' time that goes into telling other processes of "
    "gradients, and waiting for theirs. Healthy: below 0.5, else fewer are faster.",
    tags.PANEL_COST: "Seconds of the instrument panel over those of the training. "
    "Healthy: at most `--instruments.budget`, after the first epoch.",
    tags.LARGEST_EIGENVALUE: "Largest eigenvalue of the Hessian: the sharpest "
    "curvature in any direction. Healthy: at or below 2 / lr, the other curve.",
    tags.STABLE_EIGENVALUE: "2 / lr: the eigenvalue up to which gradient descent "
    "without momentum is stable.",
    tags.GRAD_NORM_MAP: "log10 |g| of each parameter (rows, in the order of the "
    "network) over the steps. Healthy: rows of much the same color. Darker row by row "
    "towards the input: vanishing. Brighter from left to right: exploding. Black: 0.",
    tags.UPDATE_RATIO_MAP: "log10 of |u| / |theta| of each parameter (rows) over the "
    "steps. Healthy: white, about 1e-3. Red: a step overwrites what was learned. Blue: "
    "the parameter hardly moves. Black: not at all.",
}

OF_PARTS = {
    "train": "on the batch of the step, before its update",
    "validation": "on the validation set, after the epoch",
    "test": "on the test set",
    "train_average": "of the averaged weights, on the training samples",
    "validation_average": "of the averaged weights, on the validation set",
    "test_average": "of the averaged weights, on the test set",
}


def describe(tag: str) -> str:
    """Return what a tag means, in Markdown; nothing where nobody knows.

    A name before it, that of a network in a loop of one's own, changes nothing.

    >>> describe("lr") == describe("generator/lr")
    True
    >>> describe("grad_norm/layers.0.bias")[:54]
    'Norm of the gradient, |g|, before clipping, of `layers'
    """
    quantity, _, name = tag.partition("/")
    if tag in OF_ONE:
        return OF_ONE[tag]
    if quantity in OF_EVERY:
        of = ", of all parameters together" if name == tags.WHOLE else f", of `{name}`"
        return OF_EVERY[quantity].format(of=of)
    if quantity == tags.LOSS and name in OF_PARTS:
        return (
            f"Mean loss of a sample, {OF_PARTS[name]}. Healthy: falling, and later "
            "level. A test or validation loss that rises again is overfitting."
        )
    if name in OF_PARTS:
        return f"Mean of the metric `{quantity}` over the samples, {OF_PARTS[name]}."
    return describe(name) if name else ""


def add_description(value: Any) -> None:
    """Add to a value of a summary what its tag means, where that is known.

    TensorBoard's own reader of files passes over what comes without a class of data.
    """
    kind = value.WhichOneof("value")
    if kind in KINDS and (text := describe(value.tag)):
        value.metadata.summary_description = text
        plugin, data_class = KINDS[kind]
        value.metadata.plugin_data.plugin_name = plugin
        value.metadata.data_class = DataClass.Value(data_class)
        if kind == "image":
            pixels = ImageData(converted_to_tensor=True)
            value.metadata.plugin_data.content = pixels.SerializeToString()
