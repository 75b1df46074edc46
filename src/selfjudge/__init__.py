"""Turn a language model into its own preference classifier."""
