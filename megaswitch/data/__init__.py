"""Corpora on disk, the sample index, span corruption, batches and the tokenizer; nothing here knows of ranks or imports
torch.

What turns text into corpora (the commands of `data_prep/`) is in `prep/`; the C++ twins of the numpy code are in
`csrc/`.
"""
