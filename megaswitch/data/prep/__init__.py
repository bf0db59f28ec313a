"""The commands behind `data_prep/`: collect, train a tokenizer, preprocess, inspect, verify, merge.

Reading corpora during training is not here, but one folder up.
"""
