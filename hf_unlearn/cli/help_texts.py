"""What `--help` shows: a screen a command, written by hand. `--help-all` lists every setting."""

OVERVIEW = """\
hf-unlearn: make a trained Hugging Face model forget part of its training data, and show that it did.

usage: hf-unlearn COMMAND [--setting value ...] [--config settings.yaml] [--debug]

commands:
  run       make a model forget; saves the model that has forgotten, with card, audit and record
  audit     has a model forgotten? a table, a page (HTML) and metrics (JSON)
  compare   several methods side by side with a retrained model, from one settings file
  demo      forget handwritten digits and compare with retraining, in two minutes
  verify    does an unlearning record (unlearning.json) match a model, and samples?
  push      send what run saved to the Hub, and nothing else

example: a classifier forgets class 3, and is audited
  hf-unlearn run --model me/vit --dataset me/images --split train --unseen_split validation \\
      --forget 'label=3' --output_dir out
  hf-unlearn audit --model out --original me/vit --dataset me/images --split train \\
      --unseen_split test --forget 'label=3' --out audit.html
  hf-unlearn push out me/vit-that-forgot

several processes: accelerate launch -m hf_unlearn.cli run ...

hf-unlearn COMMAND --help      the settings that matter, on one screen
hf-unlearn COMMAND --help-all  all settings (run, audit)
--debug                        the trace of an error
exit codes: 0 done, 1 failed, 2 not understood, 130 interrupted (run --resume goes on)"""

DATA = """\
data:
  --dataset D            name on the Hub (name@revision), folder, or .parquet, .json, .jsonl, .csv file
  --split S              split or configuration:split that the model was trained on (train)
  --unseen_split S       samples that it never saw; --unseen_dataset D if they are elsewhere
  --forget WHAT          label=3, label=Sandal, speaker=1272,1284, author_id=190..199, 10%, indices=FILE
  --columns A=B ...      what a column is, where its name does not say: image=img label=fine_label"""

RUN = f"""\
hf-unlearn run: make a model forget, and save the model that has forgotten.

usage: hf-unlearn run --model M --dataset D --forget WHAT [--unseen_split S] [--setting value ...]

example:
  hf-unlearn run --model me/vit --dataset me/images --split train --unseen_split validation \\
      --forget 'label=3' --method nabla_tau --output_dir out

model:
  --model M              name on the Hub or folder of the trained model
  --peft_config P        auto (the method's own choice), none, lora, or a folder with an adapter_config.json
  --output_dir DIR       where the model that has forgotten goes (unlearned), with its card, unlearning.json and,
                         where there are unseen samples, an audit: what push, or --push_to_hub, sends

{DATA}

method (these, and every setting of TrainingArguments, are called as in Python):
  --method NAME          nabla_tau (default), orthograd, grad_diff, npo, ...
  --request KIND         samples, class or group; default: by the column that --forget names
  --forget_target T      auto, distribution, masked_class, mean, none, or a number
  --max_steps N, --learning_rate X, --per_device_train_batch_size N, --seed N, --push_to_hub, ...

  --config FILE          the same settings from a YAML file; flags win
  --resume               go on from the last checkpoint in --output_dir, which Ctrl-C leaves there
  --help-all             all settings"""

AUDIT = f"""\
hf-unlearn audit: has a model forgotten, and how sure is that?

usage: hf-unlearn audit --model M --dataset D --forget WHAT --unseen_split S [--retrained R] [--out audit.html]

example:
  hf-unlearn audit --model out --original me/vit --retrained me/vit-retrained --dataset me/images \\
      --split train --unseen_split test --forget 'label=3' --out audit.html

models:
  --model M              the model that should have forgotten
  --original O           the original model
  --retrained R          a model retrained without the forget dataset: the yardstick

{DATA}

settings:
  --out FILE             the page; the metrics go beside it as .json (audit.html)
  --request KIND         samples, class or group; default: by the column that --forget names
  --relearning           also try to bring the data back
  --group_column C       break the metrics down by this column
  --seed N               of the random share, as in run (42)

  --config FILE          the same settings from a YAML file; flags win
  --help-all             all settings"""

DEMO = """\
hf-unlearn demo: a small ViT learns handwritten digits, forgets some, and is compared with a retrained one.

usage: hf-unlearn demo [--output_dir DIR] [--seed N]

  --output_dir DIR   where pictures and metrics go (unlearn-demo)
  --seed N           seed of everything (0)

example: hf-unlearn demo"""

VERIFY = f"""\
hf-unlearn verify: does an unlearning record match a model, and the samples that were to be forgotten?

usage: hf-unlearn verify RECORD [--model M] [--dataset D --forget WHAT]

example: are these the weights after unlearning, and were these samples among the forgotten?
  hf-unlearn verify unlearning.json --model out
  hf-unlearn verify unlearning.json --model out --dataset me/images --split train --forget 'label=3'

  RECORD                 the file unlearning.json, which run and push_to_hub leave with the model
  --model M              name on the Hub or folder of the model; it also prepares the samples

{DATA}
  --seed N               of the random share, as in run (42)

  --config FILE          the same settings from a YAML file; flags win
exit codes: 0 everything matches, 1 something does not"""

COMPARE = """\
hf-unlearn compare: several methods side by side with models retrained without the forget dataset.

usage: hf-unlearn compare CONFIG.yaml [--output_dir DIR] [--workers N]

example: all methods on handwritten digits, in minutes, in a checkout of the repository
  hf-unlearn compare benchmarks/recipes/digits.yaml --output_dir runs/digits --workers 2

  CONFIG.yaml            what is compared, with the keys
      task, options        FILE.py:Class of your own and its options; or base, dataset, head, training, ...
      requests             name: {forget: WHAT or one a seed, retain_samples: N, retrained: CHECKPOINT}
      methods              names, or name: {settings as in Python}; all
      seeds, retrained     one run each; models retrained without the forget dataset (2)
      original             checkpoint of the trained model, where it is there; or one a seed
      budget               max_steps or seconds, the same for all methods
      relearning           whether audits try to bring the data back
  --output_dir DIR       models, cells, results.json, table.md, picture.png (comparison)
  --workers N            processes that share the work (1)

run again, it goes on where it stopped. DIR/models holds the data: delete it when you are done
exit codes: 0 every cell was measured or refused by its method, 1 one failed"""

PUSH = """\
hf-unlearn push: send a folder that run saved to the Hub, in one commit.

usage: hf-unlearn push FOLDER REPO [--setting value ...]

example:
  hf-unlearn push out me/vit-that-forgot --revision forgot-3

  FOLDER                 what hf-unlearn run has left. Weights, configuration, processor, README.md, audit.json,
                         audit.html and unlearning.json are sent; checkpoints and all other files stay. Refused if
                         weights or audit are no longer those that unlearning.json tells of
  REPO                   owner/name; a new repository is private. Weights and audits that it has from before are
                         taken out of this revision; earlier revisions keep them

  --commit_message TEXT  first line of the commit (End of unlearning)
  --revision BRANCH      made where there is none (main)
  --private false        for a new repository that everybody may see
  --create_pr            open a pull request instead of committing to the branch

the token is that of HF_TOKEN, or of `hf auth login`; a command line could be read by others
what the Hub has not confirmed ends in one line and exit code 1; pushing again completes it"""

PAGES = {"run": RUN, "audit": AUDIT, "compare": COMPARE, "demo": DEMO, "verify": VERIFY, "push": PUSH}
