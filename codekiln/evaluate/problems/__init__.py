"""Problems of benchmarks, without a model: what is asked, how an answer is cut, and what judges it."""
