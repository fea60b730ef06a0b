"""A publishable folder: staging, index, configs, tokenizer files, model card and manifest."""
