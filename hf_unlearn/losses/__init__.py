"""Per-sample losses for the common heads of transformers: one number a row, where the model itself gives one a batch.

Every loss is the one in the model's own `forward` (transformers/loss/loss_utils.py), reduced over each row instead of
over the batch:

| kind | the loss of one row | mean over the rows, beside the model's own loss |
|---|---|---|
| single_label | cross-entropy | equal |
| multi_label, regression | mean over the row's labels | equal |
| question_answering | mean of the cross-entropies of start and end | equal |
| ctc, `ctc_loss_reduction="mean"` | negative log-likelihood / target length | equal |
| ctc, `ctc_loss_reduction="sum"` | negative log-likelihood | the model's loss is the sum over the rows |
| token, causal_lm, masked_lm, seq2seq_lm | mean over the row's own labelled tokens | see below |

Token-level models average over the labelled tokens of the batch, so long rows weigh more; here every row weighs the
same. The two are equal when all rows have the same number of labelled tokens; otherwise the model's loss is the mean
over the rows weighted by these numbers.

Labels of -100 and answers outside the text are left out. A row with no label at all has loss 0 and no gradient, never
NaN, and stays in the mean over rows (for CTC an empty transcription is a target like any other, as in the model).
What some models add to the loss beside the labels is left out: router balancing and z-loss of mixtures of experts, the
further n-grams of ProphetNet.
"""

from hf_unlearn.losses.detection import head_of
from hf_unlearn.losses.head import Head
from hf_unlearn.losses.labels import label_problem

__all__ = ["Head", "head_of", "label_problem"]
