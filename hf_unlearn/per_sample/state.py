"""What running a model once more must not leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class ModuleState:
    """The tensors among attributes and buffers of all modules: counters, statistics, lazily made masks."""

    def __init__(self, model: nn.Module):
        self.attributes = {module: dict(vars(module)) for module in model.modules()}
        self.buffers = {
            module: {name: (b, None if b is None else b.clone()) for name, b in module._buffers.items()}
            for module in self.attributes
            if module._buffers
        }

    def restore(self) -> None:
        """Make them what they were."""
        for module, before in self.attributes.items():
            now = vars(module)
            # Other attributes say what has been set up (transformers' hooks that record outputs), and it still is.
            for name in [name for name, value in now.items() if isinstance(value, Tensor)]:
                if name in before:
                    now[name] = before[name]
                else:
                    del now[name]
            now.update({name: value for name, value in before.items() if isinstance(value, Tensor)})
        for module, of_module in self.buffers.items():
            module._buffers.clear()
            for name, (buffer, values) in of_module.items():
                module._buffers[name] = buffer
                if buffer is not None and values is not None:
                    buffer.data.copy_(values)  # by data, or a backward pass that needs it would complain


@contextmanager
def unchanged_state(model: nn.Module) -> Iterator[None]:
    """Tensors among attributes and buffers of all modules are afterwards what they were."""
    state = ModuleState(model)
    try:
        yield
    finally:
        state.restore()
