"""Machine unlearning in the library you already use: a Hugging Face Trainer that makes a model forget."""

from hf_unlearn.arguments import UnlearningArguments
from hf_unlearn.data import split_forget_retain
from hf_unlearn.trainer import UnlearningTrainer

__version__ = "0.1.0"
__all__ = ["UnlearningArguments", "UnlearningTrainer", "__version__", "split_forget_retain"]
