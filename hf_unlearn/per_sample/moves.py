"""The operations of a forward pass, and which rows they take, by numbers that the data may decide.

Samples that are sorted by length, tokens that go to the expert that is chosen for them: the shapes of a layer's
activations may be the same in the next batch, and its rows be other samples'. The autograd graph does not have what
happens before the first weight that trains, so the calls themselves are watched.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

# Where the numbers of the rows are among an operation's arguments, and what that argument is called.
INDEXED = {
    **dict.fromkeys(("__getitem__", "__setitem__"), (1, "index")),
    **dict.fromkeys(("index_select", "gather", "scatter", "scatter_", "scatter_add", "scatter_add_"), (2, "index")),
    **dict.fromkeys(("index_add", "index_add_", "index_copy", "index_copy_"), (2, "index")),
    **dict.fromkeys(("index_put", "index_put_"), (1, "indices")),
    **dict.fromkeys(("masked_select", "masked_scatter", "masked_scatter_"), (1, "mask")),
    **dict.fromkeys(("take", "take_along_dim"), (1, "indices")),
    "repeat_interleave": (1, "repeats"), "split": (1, "split_size_or_sections"), "roll": (1, "shifts"),
    "flip": (1, "dims"), "_pack_padded_sequence": (1, "lengths"), "_grouped_mm": (2, "offs"),
}  # fmt: skip
# Operations whose result has the rows in an order that they find.
ORDERING = {"sort", "topk"}


class Moves(TorchFunctionMode):
    """Notes operations and the rows that they take while it is active.

    Args:
        size: samples in the batch.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        # Place in the order of the forward pass, and: the operation; what decides which samples these are; what only
        # follows lengths.
        self._events: list[tuple[int, str, Hashable, Hashable]] = []

    @override
    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        place = torch.autograd._get_sequence_nr()
        result = func(*args, **kwargs)
        if name in INDEXED:
            position, keyword = INDEXED[name]
            numbers = args[position] if len(args) > position else kwargs.get(keyword)
            self._events.append((place, name, *self._split(args[0], numbers)))
        else:
            self._events.append((place, name, _content(result[1]) if name in ORDERING else None, None))
        return result

    def until(self, place: int) -> tuple[int, int, int]:
        """What was noted until a place in the order of operations.

        Returns:
            What tells apart: the operations; the rows that they took; parts of other axes, which follow lengths.
        """
        noted = [noted for at, *noted in self._events if at <= place]
        operations, rows, parts = zip(*noted, strict=True) if noted else ((), (), ())
        return hash(operations), hash(rows), hash(parts)

    def _split(self, values: Any, numbers: Any) -> tuple[Hashable, Hashable]:
        """The numbers in tensors and those of the leading axis, where it may be the samples'; all others."""
        entries = tuple(numbers) if isinstance(numbers, tuple | list) else (numbers,)
        of_samples = isinstance(values, Tensor) and values.dim() > 0 and values.shape[0] % self.size == 0
        is_row = [isinstance(entry, Tensor) or (i == 0 and of_samples) for i, entry in enumerate(entries)]
        rows = tuple(_content(entry) for entry, row in zip(entries, is_row, strict=True) if row)
        return rows, tuple(_content(entry) for entry, row in zip(entries, is_row, strict=True) if not row)


def _content(numbers: Any) -> Hashable:
    """What tells numbers from others."""
    if isinstance(numbers, Tensor):
        while torch._C._functorch.is_functorch_wrapped_tensor(numbers):  # the masks of attention, under vmap
            numbers = torch._C._functorch.get_unwrapped(numbers)
        return tuple(numbers.shape), hash(numbers.detach().cpu().contiguous().numpy().tobytes())
    if isinstance(numbers, slice):
        return "slice", *map(_content, (numbers.start, numbers.stop, numbers.step))
    return tuple(map(_content, numbers)) if isinstance(numbers, tuple | list) else numbers
