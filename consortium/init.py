"""`consortium init DIR`: a commented job file, with data to try it on."""

import shlex
from pathlib import Path

from rich.console import Console

from trainers.data.synthetic import write_demo_data
from trainers.errors import ConfigError

console = Console(stderr=True, highlight=False, soft_wrap=True)

STARTER = """\
# A training job. Only task, model and data are required; what is left out is chosen, and printed with its reason.
# Run it:             consortium train {folder}/job.yaml
# Look at the data:   consortium data inspect {folder}/tickets_train.jsonl --job {folder}/job.yaml
# Override a field:   consortium train {folder}/job.yaml --set train.learning_rate=1e-4

name: assistant                    # of the run directory, output/name
task: sft                          # sft | pretrain | classify

model:
  path: /models/Llama-3.1-8B       # directory with weights and tokenizer, or a hub id
  # dtype: auto                    # float32 | bfloat16; masters are float32 in any case
  # quantization: none             # nf4 | int8: quantise the frozen base (QLoRA), with method: lora
  # attention: auto                # sdpa | eager | flash_attention_2
  # from_scratch: false            # random weights of the shape in config.json
  # add_tokens: terms.txt          # domain terms, one a line, that become tokens of their own

method:                            # or `method: full`
  lora: {{rank: 16, alpha: 32}}      # also dropout, targets, rslora, train_a

data:                              # paths are relative to this file
  train: tickets_train.jsonl       # JSONL, CSV, Parquet or a dataset directory; chat, ShareGPT, Alpaca, prompt/completion, text/label
  # validation: tickets_test.jsonl # instead of a share of train
  validation_fraction: 0.1
  group_by: customer_id            # a customer is never on both sides of the split
  # columns: {{prompt: question, completion: reply}}
  # max_length: auto               # tokens of an example
  # over_length: bad_row           # truncate
  # on_bad_row: error              # skip
  # system_prompt: You are a careful assistant of a bank.

train:
  epochs: 3                        # or max_steps
  global_batch_size: 32            # examples a step, over all workers, whatever their number
  # micro_batch_tokens: auto       # tokens of one forward pass of one worker
  # learning_rate: auto
  # schedule: cosine               # linear | constant
  # warmup: 0.03
  # max_grad_norm: 1.0
  # early_stopping: 3              # evaluations without a better one
  # seed: 0

# zero: auto                       # 1 | 2 | 3, or {{stage: 3, offload_optimizer: cpu, offload_params: cpu}}

cluster:
  # address: auto                  # of a Ray cluster; without it Ray is started on this machine for the run
  # workers: auto                  # one for each GPU
  max_failures: 3                  # a dead worker: the group starts again from the last checkpoint

# checkpoint: {{every: auto, keep: 2, best_by: eval_loss}}
# tracking: {{tensorboard: true, mlflow: null, wandb: false}}
output: runs
"""


def write_starter(folder: Path) -> None:
    """Write job.yaml and sample data to a new or empty directory. Raises ConfigError."""
    job = folder / "job.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty", "name a new directory: nothing of yours is to be written over")
        write_demo_data(folder, tickets=600, documents=100)
        job.write_text(STARTER.format(folder=shlex.quote(str(folder))))
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror or error}", "name a directory you may write to") from error
    console.print(f"  {job}  and sample data beside it. Set model.path, then: consortium train {shlex.quote(str(job))}")
