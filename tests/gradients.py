"""A callback that keeps gradients."""

from transformers import TrainerCallback


class Gradients(TrainerCallback):
    """Keeps the gradient that the optimizer gets at every step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
