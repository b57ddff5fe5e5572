"""vLLM engines as Ray actors; one pool serves SARR, evaluation and a local teacher alike."""
