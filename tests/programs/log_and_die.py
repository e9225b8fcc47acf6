"""Writes ten rows of a log into the log of a run, with TensorBoard as a sink, and kills itself: log_and_die.py LOG RUN.

From step 4 on, the losses are wrong.
"""

import os
import signal
import sys
import time
from pathlib import Path

from codekiln.metrics_log import MetricsLog, read_metrics
from codekiln.train.loggers import FLUSH_SECONDS, build_loggers

log, run = Path(sys.argv[1]), Path(sys.argv[2])
opened = MetricsLog(run / "metrics.jsonl", step=0, sinks=build_loggers(["tensorboard"], run))
for row in read_metrics(log)[:10]:
    if row["step"] >= 4:
        row["loss"] = 99.0
    opened.write(row)
time.sleep(FLUSH_SECONDS + 2)
os.kill(os.getpid(), signal.SIGKILL)
