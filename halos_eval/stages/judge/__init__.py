"""The judge stage: AlpacaEval's comparison by a language model."""
