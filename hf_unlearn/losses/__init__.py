"""Per-sample losses for the common heads of transformers: one number a sample, where a model returns one a batch.

Every loss is the one in the model's own `forward` (transformers/loss/loss_utils.py), reduced over each sample instead
of over the batch:

| kind | the loss of one sample | mean over the samples, beside the model's own loss |
|---|---|---|
| single_label | cross-entropy | equal |
| multi_label, regression | mean over the sample's labels | equal |
| question_answering | mean of the cross-entropies of start and end | equal |
| ctc, `ctc_loss_reduction="mean"` | negative log-likelihood / target length | equal |
| ctc, `ctc_loss_reduction="sum"` | negative log-likelihood | the model's loss is the sum over the samples |
| token, causal_lm, masked_lm, seq2seq_lm | mean over the sample's own labelled tokens | see below |

Token-level models average over the labelled tokens of the batch, so long samples weigh more; here every sample weighs
the same. The two are equal when all samples have the same number of labelled tokens; otherwise the model's loss is the
mean over the samples weighted by these numbers.

Labels of -100 and answers outside the text are left out. A sample with no label at all has loss 0 and no gradient,
never NaN, and stays in the mean over samples (for CTC an empty transcription is a target like any other, as in the
model). Terms that some models add to the loss beside the labels are left out: router balancing and z-loss of mixtures
of experts, the further n-grams of ProphetNet.
"""

from hf_unlearn.losses.detection import head_of
from hf_unlearn.losses.head import Head
from hf_unlearn.losses.labels import label_problem

__all__ = ["Head", "head_of", "label_problem"]
