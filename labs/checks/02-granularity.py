"""Hidden checks of lab 2: what is removed together."""

import torch
from scipy.sparse import csr_array

from prunelab.grading import exercise

# ------------------------------------------------------------------------------------------- stripes


@exercise("stripes", expects="a tensor (filters * rows * columns, channels), one stripe in each row")
def stripes(weight):
    filters, _, rows, columns = weight.shape
    places = [
        weight[f, :, r, c] for f in range(filters) for r in range(rows) for c in range(columns)
    ]  # fmt: skip
    return torch.stack(places)


@stripes.part("the example of the lab", points=1, public=True)
def _(draw):
    yield (torch.arange(12.0).view(1, 3, 2, 2),)


@stripes.part("weights of many shapes", points=1, hint="the channels have to become the last dimension")
def _(draw):
    for shape in [(4, 3, 3, 3), (2, 5, 1, 1), (3, 2, 1, 4), (1, 1, 5, 2)]:
        yield (torch.randn(shape, generator=draw),)


# --------------------------------------------------------------------------------------- two of four


@exercise("two-of-four", expects="a mask of truth values, of the weight's shape, true = keep")
def two_of_four(weight):
    keep = torch.zeros_like(weight, dtype=torch.bool)
    filters, channels, rows, columns = weight.shape
    for f in range(filters):
        for r in range(rows):
            for c in range(columns):
                for first in range(0, channels, 4):
                    sizes = [(abs(weight[f, first + m, r, c].item()), first + m) for m in range(4)]
                    for _, channel in sorted(sizes)[2:]:
                        keep[f, channel, r, c] = True
    return keep


@two_of_four.part("the example of the lab", points=1, public=True)
def _(draw):
    yield (torch.tensor([3.0, -4.0, 1.0, 2.0, 0.1, 0.2, -0.4, 0.3]).view(1, 8, 1, 1),)


@two_of_four.part("linear layers", points=1, hint="magnitudes count, not values; the mask is bool")
def _(draw):
    for filters, channels in [(3, 4), (5, 12), (1, 8)]:
        yield (torch.randn(filters, channels, 1, 1, generator=draw),)


@two_of_four.part("convolutions", points=1, hint="the four lie along the input channels, at one place")
def _(draw):
    for shape in [(2, 4, 3, 3), (3, 8, 1, 3), (1, 12, 2, 2)]:
        yield (torch.randn(shape, generator=draw),)


# ------------------------------------------------------------------------------------------ patterns


@exercise("nearest-pattern", expects="for each kernel the number of its pattern, whole numbers (kernels,)")
def nearest_pattern(kernels, library):
    chosen = []
    for kernel in kernels:
        left = [kernel[pattern].double().norm().item() for pattern in library]
        chosen.append(left.index(max(left)))
    return torch.tensor(chosen)


@nearest_pattern.part("the example of the lab", points=1, public=True)
def _(draw):
    upper = torch.tensor([True] * 5 + [False] * 4)
    yield torch.tensor([[0.6] * 5 + [1.0, 1.0, 0.0, 0.0]]), torch.stack([upper, ~upper])


@nearest_pattern.part("libraries of many patterns", points=1, hint="the largest norm, so compare squares")
def _(draw):
    for kernels, patterns in [(20, 8), (1, 3), (50, 2)]:
        library = torch.rand(patterns, 9, generator=draw).argsort(dim=1) < 4
        yield torch.randn(kernels, 9, generator=draw), library


# ----------------------------------------------------------------------------------------------- CSR


@exercise("csr-bytes", expects="how many bytes, a whole number")
def csr_bytes(weight):
    matrix = csr_array(weight.flatten(1).numpy())
    return matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes


@csr_bytes.part("the example of the lab", points=1, public=True)
def _(draw):
    weight = torch.zeros(2, 3, 1, 1)
    weight[0, 1], weight[1, 0], weight[1, 2] = 1.0, 2.0, 3.0
    yield (weight,)


@csr_bytes.part("weights of many sparsities", points=1, hint="an empty row has its row pointer, too")
def _(draw):
    for shape, sparsity in [
        ((4, 3, 3, 3), 0.5),
        ((16, 8, 1, 1), 0.9),
        ((3, 2, 3, 3), 1.0),
        ((2, 2, 2, 2), 0.0),
    ]:
        yield (torch.randn(shape, generator=draw) * (torch.rand(shape, generator=draw) >= sparsity),)


# -------------------------------------------------------------------------------- channels and filters


@exercise("unread", expects="for each channel whether nobody reads it, truth values (channels,)")
def unread(next_weight):
    return ~(next_weight != 0).any(3).any(2).any(0)


@unread.part("the example of the lab", points=0.5, public=True)
def _(draw):
    reading = torch.ones(4, 3, 3, 3)
    reading[:, 1] = 0
    reading[0, 2] = 0
    yield (reading,)


@unread.part("weights that add up to zero", points=0.5, hint="weights can cancel each other in a sum")
def _(draw):
    reading = torch.randn(4, 6, 3, 3, generator=draw)
    reading[:, 1] = reading[:, 4] = 0
    reading[:, 2] = torch.tensor([1.0, -1.0, 0.0]).expand(3, 3)
    yield (reading,)


# ------------------------------------------------------------------------------------------- reading


@exercise("judge", expects="True or False")
def judge(sentence):
    return sentence in ("a", "e")


@judge.part("the sentence that is done", points=0, public=True)
def _(draw):
    yield ("a",)


@judge.part("what zeros are worth", points=1, hint="the last column of the table of bytes; the black line")
def _(draw):
    yield from [("b",), ("c",)]


@judge.part("what is left behind", points=1, hint="what batch norm makes of zero; what 2:4 chooses inside")
def _(draw):
    yield from [("d",), ("e",)]
