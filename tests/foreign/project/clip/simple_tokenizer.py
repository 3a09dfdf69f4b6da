"""A word is the sum of its letters."""


class SimpleTokenizer:
    def __init__(self):
        self.encoder = {"<|startoftext|>": 62, "<|endoftext|>": 63}

    def encode(self, text):
        return [1 + sum(map(ord, word)) % 60 for word in text.lower().replace(".", " .").split()]
