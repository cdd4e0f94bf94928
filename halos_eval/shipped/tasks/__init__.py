"""Small tasks of our own for lm_eval (``--include_path``): data beside the YAML, so they run without any hub."""
