"""What owners of many LoRAs ask of them: which are alike, which are the same, mixes, smaller ranks, and a map.

All of it is about products B A, never about factors, which say nothing by themselves; nothing here trains or draws pictures.
"""
