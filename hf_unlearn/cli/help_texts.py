"""The texts of `--help`: one screen a command, written by hand. `--help-all` lists every setting."""

OVERVIEW = """\
hf-unlearn: make a trained Hugging Face model forget part of its training data, and audit that it has.

usage: hf-unlearn COMMAND [--setting value ...] [--config settings.yaml] [--debug]

commands:
  run       make a model forget; saves the unlearned model with model card, audit and record
  audit     has a model forgotten? a table, a report (HTML) and metrics (JSON)
  benchmark TOFU, MUSE, WMDP or RWKU of a language model, by name
  compare   compare several methods with retrained models, from one configuration file
  dashboard what run, audit and compare have left in folders, as one HTML file to look around in
  demo      forget handwritten digits and compare with retraining, in two minutes
  verify    does an unlearning record (unlearning.json) match a model, and samples?
  push      upload what run saved to the Hub, and nothing else

example: a classifier forgets class 3, and is audited
  hf-unlearn run --model me/vit --dataset me/images --split train --unseen_split validation \\
      --forget 'label=3' --output_dir out
  hf-unlearn audit --model out --original me/vit --dataset me/images --split train \\
      --unseen_split test --forget 'label=3' --out audit.html
  hf-unlearn push out me/vit-that-forgot

several processes: accelerate launch -m hf_unlearn.cli run ...

hf-unlearn COMMAND --help      the settings that matter, on one screen
hf-unlearn COMMAND --help-all  all settings (run, audit)
--debug                        print the traceback of an error
exit codes: 0 success, 1 failure, 2 bad usage, 130 interrupted (run --resume continues), 3 run: still remembered,
over-forgotten, hidden, damaged, diverged, or no step taken"""

DATA = """\
data:
  --dataset D            name on the Hub (name@revision), folder, or .parquet, .json, .jsonl, .csv file
  --split S              split or configuration:split that the model was trained on (train)
  --unseen_split S       unseen samples (never trained on); --unseen_dataset D if they are in another dataset
  --forget WHAT          label=3, label=Sandal, speaker=1272,1284, author_id=190..199, 10%, indices=FILE
  --columns A=B ...      role of a column, where its name does not tell: image=img label=fine_label"""
GENERAL = "  --general_ds FILE      a text file of what a language model should still know: its perplexity is watched"

RUN = f"""\
hf-unlearn run: make a model forget, and save the unlearned model.

usage: hf-unlearn run --model M --dataset D --forget WHAT [--unseen_split S] [--setting value ...]

example:
  hf-unlearn run --model me/vit --dataset me/images --split train --unseen_split validation \\
      --forget 'label=3' --method nabla_tau --output_dir out

model:
  --model M              name on the Hub or folder of the trained model
  --peft_config P        auto (as the method prefers), none, lora, or a folder with an adapter_config.json
  --dtype T              auto (float32 where all weights train, else as saved), float32, bfloat16 or float16
  --output_dir DIR       folder of the unlearned model (unlearned), with model card, unlearning.json and, if there
                         are unseen samples, an audit: what push, or --push_to_hub, uploads

{DATA}
{GENERAL}

method (these, and every setting of TrainingArguments, have their names from Python):
  --method NAME          nabla_tau (default), orthograd, grad_diff, npo, ...
  --method_kwargs JSON   hyper-parameters of the method: '{{"beta": 0.2}}' for npo; --help-all has every method's
  --request KIND         samples, class or group; default: by the column that --forget names
  --forget_target T      auto, distribution, masked_class, mean, none, or a number
  --reset SHARE          how far weights go back before the first step, towards --base_model or a new initialisation
  --depth retrained      aim at the depth of a retrained model, at a higher price
  --base_model B         what the model was fine-tuned from: a name, a folder, or auto (by its configuration)
  --max_steps N, --learning_rate X, --per_device_train_batch_size N, --seed N, --push_to_hub, ...

  --config FILE          the same settings from a YAML file; flags override it
  --resume               continue from the newest complete checkpoint in --output_dir, such as Ctrl-C saves
  --after RECORD         a further request, on the model in the folder of the last one's unlearning.json
  --requests FILE        many requests, each once, in place of --forget: a line is {{"id": ..., "forget": WHAT}}
  --batch_requests N     with "kind": ... in their lines, so many of one kind may be forgotten in one run (1)
  --help-all             all settings"""

AUDIT = f"""\
hf-unlearn audit: has a model forgotten, and how certain is that?

usage: hf-unlearn audit --model M --dataset D --forget WHAT --unseen_split S [--retrained R ...] [--out audit.html]

example:
  hf-unlearn audit --model out --original me/vit --retrained me/vit-retrained --dataset me/images \\
      --split train --unseen_split test --forget 'label=3' --out audit.html

models:
  --model M              the model that should have forgotten
  --original O           the original model
  --retrained R ...      models retrained without the forget dataset: the ground truth

{DATA}
{GENERAL}

settings:
  --out FILE             the HTML report (audit.html); the metrics go beside it, as .json
  --request KIND         samples, class or group; default: by the column that --forget names
  --relearning           also try to recover the forgotten data
  --group_column C       break the metrics down by this column
  --seed N               of a random --forget, as in run (42)

  --config FILE          the same settings from a YAML file; flags override it
  --help-all             all settings"""

DEMO = """\
hf-unlearn demo: a small ViT learns handwritten digits, forgets some, and is compared with a retrained one.

usage: hf-unlearn demo [--output_dir DIR] [--seed N]

  --output_dir DIR   folder of pictures, audits and metrics (unlearn-demo)
  --seed N           seed of everything (0)

example: hf-unlearn demo"""

BENCHMARK = """\
hf-unlearn benchmark: the metrics of a published benchmark of unlearning, of any causal language model.

usage: hf-unlearn benchmark NAME --model M [--retain_model R] [--data FOLDER] [--output_dir DIR] [--limit N]

names:
  tofu-forget01, tofu-forget05, tofu-forget10   model utility, forget quality, truth ratio, extraction, privacy leakage
  muse-news, muse-books                         VerbMem, KnowMem, PrivLeak
  wmdp                                          accuracy on biology, cyber security, chemistry; MMLU where it is there
  rwku                                          fill-blank, questions, attacks, neighbours, MIA set; --subject NAME

example: an unlearned model beside the published one that was trained without the forget samples
  hf-unlearn benchmark tofu-forget10 --model out --retain_model open-unlearning/tofu_Llama-3.2-1B-Instruct_retain90

settings:
  --model M              name on the Hub or folder of the model
  --retain_model R       a model trained without the forget samples; none; default: the published one of the
                         architecture in --model's name
  --data FOLDER          the files of the dataset as they lie on the Hub, in its place: CONFIG/SPLIT.parquet, ...
  --output_dir DIR       folder of the result, NAME.json (benchmark)
  --subject NAME         of rwku: the person that was forgotten
  --limit N              at most so many samples of each part; the result says so
  --batch_size N         texts in a batch (16)
  --dtype T              auto (as saved), float32, bfloat16 or float16
  --seed N               of the samples that --limit draws (0)

  --config FILE          the same settings from a YAML file; flags override it
  --help-all             all settings"""

VERIFY = f"""\
hf-unlearn verify: does an unlearning record match a model, and the samples that were to be forgotten?

usage: hf-unlearn verify RECORD ... --model M [--dataset D --forget WHAT]

example: are these the weights after unlearning, and were these samples among the forgotten?
  hf-unlearn verify unlearning.json --model out
  hf-unlearn verify unlearning.json --model out --dataset me/images --split train --forget 'label=3'

  RECORD                 the file unlearning.json, which run and push_to_hub save with the model. After several
                         requests it has all their records, and every link is checked; records that were
                         published before go first, the oldest first: are they still part of it?
  --model M              name on the Hub or folder of the model; it also prepares the samples

{DATA}
  --seed N               of a random --forget, as in run (42)

  --config FILE          the same settings from a YAML file; flags override it
exit codes: 0 everything matches, 1 something does not"""

COMPARE = """\
hf-unlearn compare: compare several methods with models retrained without the forget dataset.

usage: hf-unlearn compare CONFIG.yaml [--output_dir DIR] [--workers N] [--executor local|ray]

example: all methods on handwritten digits, in minutes, in a checkout of the repository
  hf-unlearn compare benchmarks/recipes/digits.yaml --output_dir runs/digits --workers 2

  CONFIG.yaml            the comparison, with the keys
      task, options        FILE.py:Class of your own and its options; or base, dataset, head, training, ...
      requests             name: {forget: WHAT or one a seed, retain_samples: N, retrained: CHECKPOINT}
      methods              names, or name: {settings as in Python}; all
      seeds                everything is run once for each (0, 1, 2)
      retrained            number of models retrained without the forget dataset (2)
      original             checkpoint of the original model, if it need not be trained; or one a seed
      budget               max_steps or seconds, the same for all methods
      relearning           whether audits try to recover the forgotten data
  --output_dir DIR       models, runs, results.json, table.md, picture.png (comparison)
  --workers N            number of processes that share the work (1)
  --executor E           where they are: local, on this machine, or ray, on the cluster of RAY_ADDRESS (local)

a comparison that is run again continues where it stopped. DIR/models holds the data: delete it at the end
exit codes: 0 every run was measured or refused by its method, 1 a run failed"""

DASHBOARD = """\
hf-unlearn dashboard: the requests and comparisons in some folders, as one HTML file to look around in.

usage: hf-unlearn dashboard FOLDER ... [--out FILE.html]

example:
  hf-unlearn dashboard runs audits comparison --out dashboard.html

  FOLDER                 everything below it is looked at: unlearning.json of run with its audit (a line a request:
                         target, forgetting curve, verdict, cost, depth), audits of audit, results.json of compare
  --out FILE             the file (dashboard.html). It needs no server and loads nothing, links to the HTML reports
                         beside it, and shows no sample and no name of a group. A click on a heading sorts

damaged files are named at the end. An audit that is no longer as its run wrote it is not shown"""

PUSH = """\
hf-unlearn push: upload a folder that run saved to the Hub, in one commit.

usage: hf-unlearn push FOLDER REPO [--setting value ...]

example:
  hf-unlearn push out me/vit-that-forgot --revision forgot-3

  FOLDER                 saved by hf-unlearn run. Weights, configuration, processor, README.md, audit.json,
                         audit.html and unlearning.json are uploaded, checkpoints and other files are not. Refused
                         if weights or audit are no longer those that unlearning.json names
  REPO                   owner/name; a new repository is private. Weights and audits that it had before are
                         removed from this revision; earlier revisions keep them

  --commit_message TEXT  first line of the commit (End of unlearning)
  --revision BRANCH      made if it does not exist (main)
  --private false        make a new repository public
  --create_pr            open a pull request instead of committing to the branch

the token is that of HF_TOKEN, or of `hf auth login`; others may read a command line
an upload that the Hub has not confirmed ends in one line and exit code 1; pushing again completes it"""

HELP = {
    "run": RUN, "audit": AUDIT, "benchmark": BENCHMARK, "compare": COMPARE, "demo": DEMO, "verify": VERIFY,
    "dashboard": DASHBOARD, "push": PUSH,
}  # fmt: skip
