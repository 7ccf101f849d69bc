"""Make a model forget one class of handwritten digits: offline, in under a minute on a processor."""

from hf_unlearn import UnlearningTrainer, split_forget_retain
from hf_unlearn.demo import TRAINING, digits_data, digits_model
from hf_unlearn.training import train_from_scratch

# A trained model, as you have one already: a small ViT on scikit-learn's digits.
data, model = digits_data(), digits_model()
train_from_scratch(model, data["train"], description="Training", **TRAINING)

# Forget the threes, keep everything else.
forget_ds, retain_ds = split_forget_retain(data["train"], column="label", values=[3])
trainer = UnlearningTrainer(model, forget_ds, retain_ds, unseen_ds=data["unseen"])
trainer.train()
trainer.save_model("model-that-forgot")

# Has it forgotten? The ground truth is a model that was trained without the threes.
retrained = digits_model(seed=1)
train_from_scratch(retrained, retain_ds, seed=1, description="Training without them", **TRAINING)
trainer.audit(unseen_ds=data["test"], retrained=retrained).print()
