"""A frozen CLIP with a ConvNeXt: its two towers and its tokenizer, in transformers' classes.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021; open_clip.
"""
