"""Model card, report and comparison of runs, all made from the records of runs."""
