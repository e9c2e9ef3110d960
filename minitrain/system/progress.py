"""The progress bar: of text in a terminal, and in a notebook one of its widgets."""

import warnings

with warnings.catch_warnings():
    # A notebook without widgets gets no bar, and no warning about that either.
    warnings.filterwarnings("ignore", message="IProgress not found")
    from tqdm.auto import tqdm as tqdm
