"""Writes rows of a log into the log of a run, with W&B as a sink: log_to_wandb.py LOG RUN FIRST LAST."""

import sys
from pathlib import Path

from codekiln.metrics_log import MetricsLog, read_metrics
from codekiln.train.loggers import WandbLogger

log, run = Path(sys.argv[1]), Path(sys.argv[2])
first, last = map(int, sys.argv[3:])
opened = MetricsLog(run / "metrics.jsonl", step=first, sinks=[WandbLogger("codekiln", "small", run)])
for row in read_metrics(log)[first:last]:
    opened.write(row)
opened.close()
