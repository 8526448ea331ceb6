"""The whole R1 recipe: its settings, what it is about, what each stage does, the chain, and the scores it ends with."""
