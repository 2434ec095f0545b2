"""Models: name to files (resolve, hub, directory), files to tokens (tokenizer) and tokens to vectors (encoder)."""
