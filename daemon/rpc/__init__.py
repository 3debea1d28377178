"""The local protocol: framing, messages, callers, clients."""
