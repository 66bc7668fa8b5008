"""A record becomes a conversation and token ids."""
