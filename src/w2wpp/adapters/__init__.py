"""From photos to adapters: DreamBooth-LoRA for one person or a whole population.

Nothing here knows a space.
"""
