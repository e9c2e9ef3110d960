"""Processes that share a training: torchrun starts them, torch.distributed connects.

How a step is shared without a bit of difference is the book's matter: see
`minitrain.shards`, which asks for nothing but numbers from other processes. Here they
meet and tell each other numbers (`group`, in the bytes of `messages`), and a process
that died or hangs is noticed and named (`pulse`). `launch` says who was started, and
`report` who reports an error that all have met.

This room imports the book and `system`, and knows nothing of runs.
"""
